"""Supervised fine-tuning on conversations of a file, without a scorer, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlpost.envs import registry
from rlpost.rollout.chat import Chat
from rlpost.weights import models
from tests.integration.runs import whole_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_held_out_answers_are_as_likely_as_plain_peft_says(tmp_path: Path) -> None:
    """The loss that the run reports at its end, against the saved adapter loaded without rlpost."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    talks = tmp_path / "talks.jsonl"
    with talks.open("w") as rows:
        for n in range(40):
            said = [
                ("user", f"{n} and 1?"),
                ("assistant", f"{n + 1}"),
                ("user", "and 2?"),
                ("assistant", f"{n + 2}"),
            ]
            print(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}), file=rows)
    run = whole_run(
        tmp_path / "run",
        "experiment=own_sft",
        f"env_args.path={talks}",
        "sft.steps=3",
        "sft.learning_rate=1e-3",
        "dtype=float32",
        "learner.threads=1",
        "rollout.kv_cache_gib=0.2",
        "tracking.wandb=disabled",
    )
    losses = {stage: found["default"] for stage, found in run.summary["held_out_loss"].items()}
    assert losses["after"] < losses["before"] - 0.5
    assert run.summary["eval"] == {"before": {}, "after": {}}
    assert "held-out loss of default" in run.output

    folder = models.resolve("tiny")
    chat = Chat.load(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    env = registry.make("dataset", path=str(talks))
    logprobs = []
    for _, conversation in env.unwrapped.lessons("default", "eval"):  # type: ignore[attr-defined]
        example = chat.example(conversation)
        ids = torch.tensor([example.token_ids])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        mask = torch.tensor(example.loss_mask[1:]).bool()
        logprobs.append(table.gather(1, ids[0, 1:, None])[:, 0][mask])
    assert len(logprobs) < 40
    assert losses["after"] == pytest.approx(-torch.cat(logprobs).mean().item(), abs=1e-3)
