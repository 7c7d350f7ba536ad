"""What scaling intruder dimensions down does to old and new tasks, by the loss of expert answers.

    python -m benchmarks.intruders FOLDER [--learning-rate 1e-3] [--steps 40]

Trains a LoRA of the bundled model on GeneralPoints (faces_10) with plain PEFT in this process, finds and scales its
intruder dimensions, and measures the mean loss per answer token of new examples: of the trained rule, of another rule,
and of navigation. Each difference to the trained adapter is paired by example, with a 95% t interval.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scipy import stats
from transformers import AutoModelForCausalLM

from rlpost.config.compose import compose
from rlpost.envs import registry
from rlpost.envs.adapter import tools_of
from rlpost.envs.base import Expert
from rlpost.errors import AdapterError
from rlpost.pages.spectrum_figures import told
from rlpost.rollout.chat import Chat
from rlpost.types import Example
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.models import TINY
from rlpost.weights.spectrum import Search, measure, scale_intruders

SETS = {
    "faces_10 (trained)": ("generalpoints_sft", "faces_10", 64),
    "faces_11_12_13 (another rule)": ("generalpoints_sft", "faces_11_12_13", 64),
    "navigation, compass (another task)": ("navigation_sft", "absolute", 16),
}
LAMBDAS = (0.75, 0.5, 0.0)
BATCH = 16


def examples(experiment: str, variant: str, split: str, count: int, seed: int) -> list[Example]:
    """Expert answers on instances of a split, right at once."""
    cfg, rng = compose([f"experiment={experiment}"]), random.Random(seed)
    chat, env = Chat.load(TINY, cfg.rollout), registry.make(cfg.env, **cfg.env_args)
    found = []
    for _ in range(count):
        env.reset(seed=rng.getrandbits(32), options={"variant": variant, "split": split})
        expert = env.unwrapped
        assert isinstance(expert, Expert)
        found.append(chat.example(expert.expert(False, rng), tools_of(env)))
    env.close()
    return found


def losses(model: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-likelihood of each example's answer tokens."""
    longest = max(len(each.token_ids) for each in batch)
    ids, mask = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
    attended = torch.zeros(len(batch), longest, dtype=torch.long)
    for i, each in enumerate(batch):
        size = len(each.token_ids)
        ids[i, :size], mask[i, :size] = torch.tensor(each.token_ids), torch.tensor(each.loss_mask)
        attended[i, :size] = 1
    logits = model(input_ids=ids, attention_mask=attended).logits[:, :-1].float()
    told_by = -logits.log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    return (told_by * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)


def train(folder: Path, learning_rate: float, steps: int) -> None:
    torch.manual_seed(0)
    settings = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), settings)
    taught = examples("generalpoints_sft", "faces_10", "train", BATCH * steps, seed=1)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], learning_rate, weight_decay=0.0
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 5)
        loss = losses(model, taught[BATCH * step : BATCH * (step + 1)]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    model.save_pretrained(folder)


def measured(adapter: Path | None, sets: dict[str, list[Example]]) -> dict[str, torch.Tensor]:
    """The losses of every set under an adapter; None: under the bare model."""
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return {name: torch.cat([losses(model, [each]) for each in found]) for name, found in sets.items()}


def row(name: str, found: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> str:
    """A row of the table: the mean loss, and its difference to the trained adapter."""
    cells = []
    for each, loss in found.items():
        change = (loss - trained[each]).double()
        half = float(stats.t.isf(0.025, len(change) - 1)) * float(change.std()) / len(change) ** 0.5
        cells.append(
            f"{loss.mean():.4f} ({change.mean():+.4f} [{change.mean() - half:+.4f}, {change.mean() + half:+.4f}])"
        )
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    began = time.monotonic()
    train(asked.folder / "trained", asked.learning_rate, asked.steps)
    base, adapter = BaseWeights(TINY), Adapter.load(asked.folder / "trained")
    print(told(measure(adapter, base, Search(), "bfloat16")), flush=True)
    sets = {name: examples(e, v, "eval", count, seed=2) for name, (e, v, count) in SETS.items()}
    trained = measured(asked.folder / "trained", sets)
    print(f"| adapter | {' | '.join(sets)} |\n|{'---|' * (1 + len(sets))}", flush=True)
    print(row("bare model", measured(None, sets), trained), flush=True)
    print(row("trained", trained, trained), flush=True)
    for factor in LAMBDAS:
        try:
            scaled = scale_intruders(adapter, base, Search(), factor).adapter
        except AdapterError as error:
            print(error)
            break
        scaled.save(asked.folder / f"lambda-{factor:g}")
        print(
            row(f"lambda {factor:g}", measured(asked.folder / f"lambda-{factor:g}", sets), trained),
            flush=True,
        )
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
