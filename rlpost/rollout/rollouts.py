"""How training gets its episodes: one batch after another, or played ahead (rlpost.rollout.streaming)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rlpost.config.schema import Config
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.streaming import StreamingRollouts
from rlpost.types import EpisodeSpec, Trajectory


class Rollouts(Protocol):
    """The episodes of training. While it plays ahead, the pool must be used only where a method allows it."""

    def collect(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        """The episodes of `specs`, all of the iteration whose policy is live, in the order of `specs`."""

    def swapping(self, iteration: int) -> AbstractContextManager[None]:
        """A context in which the caller makes the policy of `iteration` live."""

    def settle(self) -> None:
        """Free the engines, for an evaluation, until the next `collect`."""

    def metrics(self, batch: Sequence[Trajectory], live: int) -> dict[str, float]:
        """Measurements of an iteration's batch, which the version `live` is to learn from."""


class SynchronousRollouts:
    """`rollout.max_staleness=0`: a batch is played when it is asked for, and the engines sleep otherwise."""

    def __init__(self, pool: RolloutPool, sampling: Sampling) -> None:
        self._pool, self._sampling = pool, sampling

    def collect(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        return self._pool.collect(specs, self._sampling)

    def swapping(self, iteration: int) -> AbstractContextManager[None]:
        return nullcontext()

    def settle(self) -> None:
        pass

    def metrics(self, batch: Sequence[Trajectory], live: int) -> dict[str, float]:
        return {}


def rollouts_of(cfg: Config, pool: RolloutPool) -> Rollouts:
    """The rollouts of a run, by `rollout.max_staleness`."""
    rollout = cfg.rollout
    sampling = Sampling(rollout.temperature, rollout.max_new_tokens, tuple(rollout.stop))
    if rollout.max_staleness == 0:
        return SynchronousRollouts(pool, sampling)
    return StreamingRollouts(pool, cfg, sampling)
