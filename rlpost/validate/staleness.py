"""Refuses settings that contradict playing ahead of the learner (rollout.max_staleness)."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.config.keys import refusal
from rlpost.config.schema import Config, RolloutPolicy, Task


def max_staleness(config: Config) -> Iterator[str]:
    """Refusals of what needs every update in the engines, or the whole of a run's compute in its lines."""
    rollout = config.rollout
    if rollout.max_staleness <= 0:
        return
    if rollout.policy is RolloutPolicy.start:
        yield refusal(
            "rollout.max_staleness",
            rollout.max_staleness,
            "with rollout.policy=start the engines take no update, so every episode gets older without bound",
            "rollout.max_staleness=0, or rollout.policy=latest",
        )
    if config.budget.amounts or config.task is Task.compare:
        yield refusal(
            "rollout.max_staleness",
            rollout.max_staleness,
            "a budget ends a run while episodes are being played ahead, and no line would count their compute",
            "rollout.max_staleness=0, or a run whose end is algo.iterations",
        )
    if rollout.recycle_mib:
        yield refusal(
            "rollout.recycle_mib",
            rollout.recycle_mib,
            "a worker is replaced between iterations while it is idle, and with rollout.max_staleness it never is",
            "rollout.recycle_mib=0, or rollout.max_staleness=0",
        )
    if rollout.lag:
        yield refusal(
            "rollout.max_staleness",
            rollout.max_staleness,
            "rollout.lag fixes which version plays an episode, and playing ahead leaves it to the timing",
            "rollout.max_staleness=0, or rollout.lag=0",
        )
