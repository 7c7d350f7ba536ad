"""TRL's side of benchmarks.iteration: steps of its GRPOTrainer. Runs in a separate environment that has TRL.

    python trl_iteration.py WORK.json     prints one JSON object: seconds and tokens of every step

It imports nothing of rlpost. WORK.json: model (folder), prompts (texts in the model's chat format), group_size,
new_tokens, rank, alpha, learning_rate, steps, threads, dtype.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any


def main(work: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(work["threads"])
    import datasets
    import datasets.fingerprint
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    # TRL's data set hashing fails on Python 3.11.15; the name of a data set does not matter here.
    datasets.fingerprint.Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, work["dtype"]))
    count = len(work["prompts"]) * work["group_size"]
    ends: list[float] = []
    lengths: list[int] = []

    class Ends(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    def reward(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return [float(len(text) % 7) for text in completions]  # varies within a group and costs nothing

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=count,
            num_generations=work["group_size"],
            max_completion_length=work["new_tokens"],
            learning_rate=work["learning_rate"],
            max_steps=work["steps"],
            bf16=work["dtype"] == "bfloat16",
            use_cpu=True,
            use_vllm=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": work["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
        peft_config=LoraConfig(
            r=work["rank"], lora_alpha=work["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Ends()],
    )
    trainer.train()
    seconds = [after - before for before, after in pairwise(ends)]
    print(json.dumps({"seconds": seconds, "tokens": lengths}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
