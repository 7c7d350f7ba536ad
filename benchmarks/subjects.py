"""The subjects of the benchmarks: a model with a random adapter of a given size, and prompts in its own format."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlpost.rollout.engine.settings import EngineSettings, engine_environment
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import resolve

CANARY_TOKENS = 32
TOPICS = (
    "apples",
    "trains",
    "ships",
    "stars",
    "coins",
    "books",
    "clocks",
    "rivers",
    "maps",
    "lamps",
    "stones",
)


@dataclass(frozen=True)
class Case:
    model: str
    dtype: str
    threads: int
    repeats: int
    eager: bool = True  # like rollout.enforce_eager

    def settings(self, **more: Any) -> EngineSettings:
        folder = resolve(self.model)
        return EngineSettings(
            folder, dtype=self.dtype, threads=self.threads, enforce_eager=self.eager, **more
        )


def for_engines(threads: int, eager: bool = True) -> dict[str, str]:
    return engine_environment(threads, eager)


def run_cases(
    description: str,
    run: Callable[[Case], str],
    models: list[str],
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    environment: Callable[[int], dict[str, str]] = for_engines,
) -> None:
    """Run each model with each dtype in its own process (vLLM: one engine per process), and print the answers.

    `environment` gives the environment variables of the processes for a number of threads.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", default=models, help="as model=... takes them")
    parser.add_argument("--dtypes", nargs="+", default=list(dtypes))
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    os.environ.update(environment(args.threads))
    for model in args.models:
        for dtype in args.dtypes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                answer = pool.submit(run, Case(model, dtype, args.threads, args.repeats)).result()
            load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
            print(f"{model} {dtype}, {args.threads} thread(s), load {load}\n{answer}\n", flush=True)


@dataclass(frozen=True)
class Policy:
    """A PEFT model in the learner's form (base in `dtype`, adapter in float32, bfloat16 under autocast)."""

    model: Any
    adapter: Adapter

    @classmethod
    def random(cls, folder: Path, dtype: str, size: float = 0.02, rank: int = 32) -> Policy:
        """LoRA on all linear layers. In every module the delta has `size` times the norm of the base weight."""
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, config).eval()
        for module in model.modules():
            if hasattr(module, "lora_B"):
                A, B = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
                B.normal_()
                delta = module.scaling["default"] * torch.linalg.vector_norm(B @ A)
                B.mul_(size * torch.linalg.vector_norm(module.base_layer.weight.float()) / delta)
        adapter = Adapter.create(model.peft_config["default"].to_dict(), get_peft_model_state_dict(model), 1)
        return cls(model, adapter)

    @torch.no_grad()
    def logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        """log p(token_ids[i + 1] | token_ids[: i + 1])."""
        half = self.model.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits = self.model(torch.tensor([token_ids])).logits[0, :-1].float()
        chosen = torch.tensor(token_ids[1:]).unsqueeze(1)
        scores: list[float] = logits.log_softmax(-1).gather(1, chosen).squeeze(1).tolist()
        return scores

    def canary(self, token_ids: tuple[int, ...]) -> Canary:
        token_ids = token_ids[:CANARY_TOKENS]
        return Canary(token_ids, tuple(self.logprobs(token_ids)))


def prompts(folder: Path, count: int) -> list[tuple[int, ...]]:
    """Different questions in the model's own chat format."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = []
    for i in range(count):
        a, b = TOPICS[i % len(TOPICS)], TOPICS[(i // len(TOPICS) + 3 * i + 1) % len(TOPICS)]
        question = f"{i + 7} {a} and {2 * i + 5} {b}: how many? Show each step, then say what {a} are for."
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        asked.append(tuple(tokenizer.encode(text, add_special_tokens=False)))
    return asked


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
