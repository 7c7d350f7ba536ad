"""Refuses settings under which engines cannot sleep while the learner works, or would free nothing (rollout.sleep)."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.config.keys import refusal
from rlpost.config.schema import Config

_SHARED = "rollout.gpus=0.5 learner.gpus=0.5"
_OR_NOT = "or rollout.sleep=false"


def sleep(config: Config) -> Iterator[str]:
    """Refusals of `rollout.sleep` and of what contradicts it."""
    if config.rollout.sleep:
        yield from _refusals(config)


def _refusals(config: Config) -> Iterator[str]:
    rollout, learner = config.rollout, config.learner
    if rollout.gpus == 0:
        reason = "rollout.gpus=0: engines run on the CPU, where vLLM has no sleep mode"
        yield refusal("rollout.sleep", "true", reason, f"{_SHARED}, {_OR_NOT}")
    elif learner.gpus == 0:
        reason = "learner.gpus=0: the learner needs no GPU memory that engines could free"
        yield refusal("rollout.sleep", "true", reason, f"{_SHARED}, {_OR_NOT}")
    elif rollout.gpus + learner.gpus > 1:
        reason = (
            f"with rollout.gpus={rollout.gpus:g} and learner.gpus={learner.gpus:g} Ray gives engine and learner a GPU"
            " each, so there are no turns to take"
        )
        yield refusal("rollout.sleep", "true", reason, f"{_SHARED} (at most 1 in all), {_OR_NOT}")
    if rollout.max_staleness > 0:
        reason = "with rollout.max_staleness above 0 engines play while the learner works, and never rest"
        yield refusal("rollout.sleep", "true", reason, f"rollout.max_staleness=0, {_OR_NOT}")
    late = "with rollout.sleep a worker that joins late would start its engine while the learner has the GPU"
    if rollout.min_workers is not None and rollout.min_workers < rollout.workers:
        yield refusal("rollout.min_workers", rollout.min_workers, late, f"leave it out, {_OR_NOT}")
    if rollout.max_workers is not None:
        yield refusal("rollout.max_workers", rollout.max_workers, late, f"leave it out, {_OR_NOT}")
