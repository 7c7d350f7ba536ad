"""Continuous play in one worker: episodes of several iterations in one open batch, which outlives calls and swaps.

    owed specs ──▶ those that are new ──▶ waiting, earlier iterations first ──▶ live ──▶ ended ──▶ handed over
                                                                                           └ kept while they are owed

Each call says which episodes the caller is still owed. That one message adds new episodes, acknowledges those that have
arrived, and tells a replaced worker what to play again. So no episode is lost if a call is cancelled before its last
values arrive, and none is played twice by a worker that lives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rlpost.rollout.collect import Batch, Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.types import EpisodeSpec, Trajectory


@dataclass(frozen=True)
class Played:
    """Episodes that have ended in a worker, and the seconds that its engine has decoded since the worker began."""

    trajectories: tuple[Trajectory, ...]
    engine_seconds: float


class ContinuousPlay:
    """The open batch of a worker."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._batch = Batch(deque(), Sampling(1.0, 1), 0)
        self._ended: dict[str, Trajectory] = {}  # handed over, and perhaps not arrived

    def play(
        self, owed: Sequence[EpisodeSpec], sampling: Sampling, policy_version: int, begin: bool
    ) -> Generator[Played | None]:
        """Play until every owed episode has been handed over. Closed early, the episodes go on in the next call.

        Args:
            owed: all episodes that the caller expects of this worker and has not received.
            policy_version: the live version, which turns submitted from now on record.
            begin: whether episodes may begin; otherwise only live ones are played to their end.

        Yields at once what has ended and may not have arrived; then what ends in each engine step, None if nothing
        does. Raises like `Collector.stream`.
        """
        batch = self._batch
        batch.sampling, batch.policy_version = sampling, policy_version
        self._take_on(owed)
        held: deque[tuple[str, EpisodeSpec]] = deque()
        if not begin:
            batch.waiting, held = held, batch.waiting
        try:
            yield Played(
                tuple(self._ended.values()), batch.engine_seconds
            )  # also says that the call has begun
            while batch.waiting or batch.live:
                ended = self._collector.advance(batch)
                self._ended.update(ended)
                yield self._played(tuple(trajectory for _, trajectory in ended))
        finally:
            batch.waiting.extend(held)

    def drain(self) -> None:
        """End the engine's requests. Their episodes go on when `play` is called again."""
        self._collector.drain(self._batch)

    def _take_on(self, owed: Sequence[EpisodeSpec]) -> None:
        """Forget ended episodes that have arrived; queue those that this worker does not have yet."""
        wanted = {_key(spec): spec for spec in owed}
        self._ended = {key: trajectory for key, trajectory in self._ended.items() if key in wanted}
        batch = self._batch
        known = {*self._ended, *batch.live, *(key for key, _ in batch.waiting)}
        new = [(key, spec) for key, spec in wanted.items() if key not in known]
        batch.waiting = deque(sorted([*batch.waiting, *new], key=lambda pair: pair[1].iteration))

    def _played(self, trajectories: tuple[Trajectory, ...]) -> Played | None:
        return Played(trajectories, self._batch.engine_seconds) if trajectories else None


def _key(spec: EpisodeSpec) -> str:
    return f"{spec.iteration}/{spec.episode}"
