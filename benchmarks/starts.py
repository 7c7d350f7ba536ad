"""Starts of an adapter under supervised training: seconds of the start, loss on held-out answers after equal steps.

    python -m benchmarks.starts experiment=generalpoints_sft --steps 40 --seeds 0,1 --starts default,pissa,eva

In one process, without engines or DeepSpeed: the learner's model, AdamW, and the schedule of rlpost.learner.update (a
linear warm-up, then constant). Words without `--` are settings. The held-out answers are those of another seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from dataclasses import replace

import torch

from rlpost.algorithms.roles import POLICY
from rlpost.config.compose import compose
from rlpost.config.schema import AdapterStart, Config, Dtype
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import Row, collate, plan_micro_batches, slot_starts
from rlpost.rollout.chat import Chat
from rlpost.tasks.expert_data import ExpertData
from rlpost.tasks.start_examples import start_examples
from rlpost.types import Example
from rlpost.weights import models

HELD_OUT_SEED = 777


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--starts", default="default,orthogonal,pissa,eva,lora_ga")
    args = parser.parse_args()
    cfg = compose(args.settings)
    held_out = _batches(replace(cfg, seed=HELD_OUT_SEED), 1, args.held_out)[0]
    print(
        f"{'start':>12} {'seed':>4} {'start s':>8} {'step s':>7}  held-out loss after 0, half and all steps"
    )
    for start in args.starts.split(","):
        for seed in map(int, args.seeds.split(",")):
            lora = replace(cfg.lora, start=AdapterStart(start))
            _measure(replace(cfg, seed=seed, lora=lora), args.steps, held_out)


def _measure(cfg: Config, steps: int, held_out: list[Example]) -> None:
    folder = models.resolve(cfg.model)
    batches = _batches(cfg, steps, cfg.sft.batch_size)
    examples = start_examples(cfg, Chat.load(folder, cfg.rollout))
    plain = replace(cfg.lora, start=AdapterStart.default)
    began = time.perf_counter()
    actor_critic.build(folder, Dtype.float32, plain, cfg.seed, (POLICY,), None)
    without = time.perf_counter() - began
    model = actor_critic.build(folder, Dtype.float32, cfg.lora, cfg.seed, (POLICY,), None, examples)
    start_s = time.perf_counter() - began - 2 * without
    model.fuse()
    optimizer = torch.optim.AdamW(
        model.parameters_of(POLICY), lr=1.0, betas=(0.9, 0.95), weight_decay=cfg.learner.weight_decay
    )
    losses, seconds = [_loss(model, held_out)], list[float]()
    for step, batch in enumerate(batches):
        began = time.perf_counter()
        optimizer.param_groups[0]["lr"] = cfg.sft.learning_rate * min(1.0, (step + 1) / cfg.sft.warmup_steps)
        optimizer.zero_grad()
        _backward(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters_of(POLICY), cfg.learner.max_grad_norm)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        if step + 1 in (steps // 2, steps):
            losses.append(_loss(model, held_out))
    shown = "  ".join(f"{loss:.4f}" for loss in losses)
    print(
        f"{cfg.lora.start.value:>12} {cfg.seed:>4} {start_s:8.2f} {statistics.median(seconds):7.2f}  {shown}",
        flush=True,
    )


def _batches(cfg: Config, steps: int, size: int) -> list[list[Example]]:
    chat = Chat.load(models.resolve(cfg.model), cfg.rollout)
    with closing(ExpertData(replace(cfg, sft=replace(cfg.sft, batch_size=size)), chat)) as data:
        return [data.batch(step)[0] for step in range(steps)]


def _backward(model: ActorCritic, examples: list[Example]) -> float:
    """The mean loss over the examples' tokens; where gradients are on, their backward pass too."""
    rows = [Row(e.token_ids, e.loss_mask) for e in examples]
    starts, total = slot_starts(rows), 0.0
    for groups in plan_micro_batches(rows, range(len(rows)), 4096, 1)[0]:
        logprobs_N = model(collate(rows, starts, groups), (POLICY,), 1.0).of(POLICY)
        loss = -logprobs_N.sum() / starts[-1]
        if loss.requires_grad:
            loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def _loss(model: ActorCritic, examples: list[Example]) -> float:
    return _backward(model, examples)


if __name__ == "__main__":
    main()
