"""SFT of the bundled model with each optimizer, without engines and DeepSpeed: the loss on held-out answers by step.

    python -m benchmarks.optimizers [overrides ...] [--steps 40] [--seeds 0 1] [--rates 3e-4 1e-3]

All see the same examples in the same order. The held-out answers are those of later steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import POLICY
from rlpost.config.compose import compose
from rlpost.config.schema import Config, Dtype, LearnerConfig, Optimizer
from rlpost.learner import optimizers, update
from rlpost.learner.model import actor_critic
from rlpost.learner.model.packing import MicroBatch, Row
from rlpost.learner.steps import Batch, compute_outputs
from rlpost.rollout.chat import Chat
from rlpost.tasks.expert_data import ExpertData
from rlpost.weights import models

ARMS = {
    "adamw": (Optimizer.adamw, 1.0),
    "LoRA+ 16": (Optimizer.adamw, 16.0),
    "lora_pro": (Optimizer.lora_pro, 1.0),
    "muon": (Optimizer.muon, 1.0),
}
HELD_OUT = 10_000  # the step from which the held-out answers are


class Backend:
    """One rank without DeepSpeed."""

    def __init__(self, model: actor_critic.ActorCritic, cfg: LearnerConfig) -> None:
        self.model, self.cfg, self.rendezvous = model, cfg, SimpleNamespace(world_size=1, rank=0)
        model.fuse()
        self.optimizer = optimizers.build(model, cfg)

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        outputs: Outputs = self.model(batch, roles, temperature)
        return outputs

    def step(
        self, losses: Iterable[Tensor], count: int, rates: dict[str, float], where: str
    ) -> dict[str, float]:
        self.model.zero_grad()
        for loss in losses:
            loss.backward()
        self.optimizer.set_rates(rates)
        self.optimizer.step()
        return self.optimizer.norms

    def summed(self, values: Tensor) -> Tensor:
        return values

    largest = summed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("overrides", nargs="*", help="further settings")
    args = parser.parse_args()
    for seed in args.seeds:
        cfg = compose(
            ["experiment=generalpoints_sft", f"seed={seed}", f"sft.steps={args.steps}", *args.overrides]
        )
        folder = models.resolve(cfg.model)
        with closing(ExpertData(cfg, Chat.load(folder, cfg.rollout))) as data:
            examples = [data.batch(step)[0] for step in range(args.steps)]
            held_out = [example for k in range(4) for example in data.batch(HELD_OUT + k)[0]]
        for rate in args.rates:
            for name, (optimizer, ratio) in ARMS.items():
                learner = replace(cfg.learner, optimizer=optimizer, lora_plus_ratio=ratio)
                arm = replace(cfg, learner=learner, sft=replace(cfg.sft, learning_rate=rate))
                print(
                    f"seed {seed}, rate {rate:g}, {name}: {_trained(arm, folder, examples, held_out)}",
                    flush=True,
                )


def _trained(cfg: Config, folder: Any, examples: list[Any], held_out: list[Any]) -> str:
    torch.set_num_threads(cfg.learner.threads)
    model = actor_critic.build(folder, Dtype.float32, cfg.lora, cfg.seed, (POLICY,), None)
    backend: Any = Backend(model, cfg.learner)
    losses, seconds = [_loss(backend, held_out)], 0.0
    for step, batch in enumerate(examples):
        began = time.process_time()
        update.sft_step(backend, batch, cfg, step)
        seconds += time.process_time() - began
        if 2 * (step + 1) in (len(examples), 2 * len(examples)):
            losses.append(_loss(backend, held_out))
    told = ", ".join(f"{loss:.4f}" for loss in losses)
    return (
        f"held-out loss at the start, half-way, at the end {told}; {seconds / len(examples):.2f} CPU s a step"
    )


def _loss(backend: Any, held_out: list[Any]) -> float:
    budget = backend.cfg.micro_batch_tokens
    batch = Batch.of([Row(e.token_ids, e.loss_mask) for e in held_out], budget)
    return -float(compute_outputs(backend, batch, (POLICY,), budget, 1.0)[0][POLICY].double().mean())


if __name__ == "__main__":
    main()
