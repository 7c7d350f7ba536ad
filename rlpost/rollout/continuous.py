"""Continuous play in one worker: episodes of several iterations in one open batch, which outlives calls and swaps.

    owed specs ──▶ those that are new ──▶ waiting, earlier iterations first ──▶ live ──▶ ended ──▶ handed over
                                                                                           └ kept while they are owed

Each call says which episodes the caller is still owed. That one message adds new episodes, acknowledges those that have
arrived, and tells a replaced worker what to play again. So no episode is lost if a call is cancelled before its last
values arrive, and none is played twice by a worker that lives.

A call may ask for waiting episodes back, for another worker. The caller owes them to that one only once it has heard
which these are. If it does not hear it, its next call says that they are owed here still, and they wait here again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rlpost.rollout.collect import Batch, Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.types import EpisodeSpec, Trajectory

Key = tuple[int, int]
"""Iteration and episode."""

Group = tuple[int, int]
"""Iteration and group."""


@dataclass(frozen=True)
class Played:
    """Episodes that have ended in a worker, and the seconds that its engine has decoded since the worker began.

    `given_back`: episodes that the worker was asked to give back and does not have any more.
    """

    trajectories: tuple[Trajectory, ...]
    engine_seconds: float
    given_back: tuple[Key, ...] = ()


class ContinuousPlay:
    """The open batch of a worker."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._batch = Batch(deque(), Sampling(1.0, 1), 0)
        self._ended: dict[str, Trajectory] = {}  # handed over, and perhaps not arrived
        # By group of which episodes wait: how many of them waited when it was added.
        self._queued: dict[Group, int] = {}

    def play(
        self,
        owed: Sequence[EpisodeSpec],
        sampling: Sampling,
        policy_version: int,
        begin: bool,
        give_back: int = 0,
    ) -> Generator[Played | None]:
        """Play until every owed episode has been handed over. Closed early, the episodes go on in the next call.

        Args:
            owed: all episodes that the caller expects of this worker and has not received.
            policy_version: the live version, which turns submitted from now on record.
            begin: whether episodes may begin; otherwise only live ones are played to their end.
            give_back: most waiting episodes to give back, in whole groups, those first that would be played last.

        Yields at once what has ended and may not have arrived, and what it gives back; then what ends in each engine
        step, None if nothing does. Raises like `Collector.stream`.
        """
        batch = self._batch
        batch.sampling, batch.policy_version = sampling, policy_version
        self._take_on(owed)
        given_back = self._give_back(give_back)
        held: deque[tuple[str, EpisodeSpec]] = deque()
        if not begin:
            batch.waiting, held = held, batch.waiting
        try:
            # This also says that the call has begun.
            yield Played(tuple(self._ended.values()), batch.engine_seconds, given_back)
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
        waiting, added = Counter(_group(spec) for _, spec in batch.waiting), {_group(spec) for _, spec in new}
        self._queued = {group: n if group in added else self._queued[group] for group, n in waiting.items()}

    def _give_back(self, most: int) -> tuple[Key, ...]:
        """Drop waiting episodes. A group of which an episode has begun stays."""
        groups: dict[Group, list[EpisodeSpec]] = {}
        for _, spec in self._batch.waiting:
            groups.setdefault(_group(spec), []).append(spec)
        dropped: dict[str, EpisodeSpec] = {}
        for group, specs in reversed(groups.items()):
            if len(specs) == self._queued[group] and len(dropped) + len(specs) <= most:
                dropped |= {_key(spec): spec for spec in specs}
        self._batch.waiting = deque(pair for pair in self._batch.waiting if pair[0] not in dropped)
        return tuple((spec.iteration, spec.episode) for spec in dropped.values())

    def _played(self, trajectories: tuple[Trajectory, ...]) -> Played | None:
        return Played(trajectories, self._batch.engine_seconds) if trajectories else None


def _group(spec: EpisodeSpec) -> Group:
    return spec.iteration, spec.group


def _key(spec: EpisodeSpec) -> str:
    return f"{spec.iteration}/{spec.episode}"
