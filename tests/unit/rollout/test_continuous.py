"""Continuous play with a scripted engine and real environments' threads: swaps, additions, interruptions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rlpost.rollout.continuous import ContinuousPlay
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.env_threads import Patience
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.types import EpisodeSpec, ModelInput, Trajectory
from tests.unit.rollout.test_slow_envs import SAMPLING, Letters, OneByOne, Witness, quiet
from tests.unit.rollout.test_slow_envs import specs as specs_of


def specs(count: int, iteration: int = 0) -> list[EpisodeSpec]:
    return [replace(spec, iteration=iteration, seed=spec.seed + 1000 * iteration) for spec in specs_of(count)]


class Noting(OneByOne):
    """Notes what is submitted and what is answered, by seed, while `version` is live."""

    version = 0

    def submit(self, key: str, prompt: ModelInput, sampling: Sampling, seed: int) -> None:
        submitted[seed] = Noting.version
        super().submit(key, prompt, sampling, seed)

    def step(self) -> list[tuple[str, Completion]]:
        answered.extend([Noting.version] * min(1, len(self._queue)))
        return super().step()


submitted: dict[int, int] = {}
answered: list[int] = []


def noting() -> tuple[Witness, ContinuousPlay]:
    submitted.clear()
    answered.clear()
    witness = Witness(Letters(), quiet, max_live=4, engine_kind=Noting)
    return witness, ContinuousPlay(witness.collector)


def played(play: ContinuousPlay, owed: Sequence[EpisodeSpec], version: int, steps: int) -> list[Trajectory]:
    """What has ended after at most so many steps; then the call is cancelled."""
    Noting.version = version
    stream, ended = play.play(owed, SAMPLING, version, begin=True), list[Trajectory]()
    for _, each in zip(range(steps), stream, strict=False):
        ended += each.trajectories if each is not None else ()
    stream.close()
    return ended


def test_each_turn_has_the_version_that_was_live_when_it_was_submitted() -> None:
    """Version 1 submits the turns of four episodes and answers one; the others are answered under version 2."""
    _, play = noting()
    owed = specs(4)
    assert played(play, owed, version=1, steps=3) == []
    assert set(submitted.values()) == {1}
    assert 0 < len(answered) < 4, "turns must be on the way at the swap"
    ended = played(play, owed, version=2, steps=1000)
    assert len(ended) == 4
    assert sorted(turn.policy_version for t in ended for turn in t.turns) == sorted(submitted.values())
    spanning = sum(t.turns[0].policy_version == 1 for t in ended)
    assert spanning > answered.count(1), "a turn that spans the swap counts as old"
    assert all(
        [turn.policy_version for turn in t.turns] == sorted(turn.policy_version for turn in t.turns)
        for t in ended
    )


def test_drained_requests_end_before_the_swap_and_nothing_new_is_submitted() -> None:
    witness, play = noting()
    played(play, specs(4), version=1, steps=3)
    before = len(submitted)
    play.drain()
    assert witness.collector._engine._queue == []  # type: ignore[attr-defined]
    assert len(submitted) == before
    ended = played(play, specs(4), version=2, steps=1000)
    assert sorted(t.episode for t in ended) == [0, 1, 2, 3]
    assert {t.turns[0].policy_version for t in ended} == {1}


def test_interrupted_and_added_to_it_plays_the_episodes_that_a_batch_would_be() -> None:
    witness, play = noting()
    ended = played(play, specs(3), 0, steps=4)
    while len(ended) < 7:
        missing = [s for s in (*specs(3), *specs(4, 1)) if (s.iteration, s.episode) not in keys(ended)]
        ended += played(play, missing, 0, steps=3)
    assert keys(ended) == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)}
    alone = Witness(Letters(), quiet).collector.collect([*specs(3), *specs(4, 1)], SAMPLING, 0)
    assert sorted(ended, key=lambda t: (t.iteration, t.episode)) == alone
    assert len(witness.dice) == len({*witness.dice}), "a turn was sampled twice"


def keys(ended: Sequence[Trajectory]) -> set[tuple[int, int]]:
    return {(t.iteration, t.episode) for t in ended}


def test_what_did_not_arrive_comes_again_and_what_did_is_forgotten() -> None:
    _, play = noting()
    first = played(play, specs(4), 0, steps=1000)
    again = played(play, specs(2), 0, steps=1000)
    assert again == [t for t in sorted(first, key=lambda t: t.episode) if t.episode < 2]
    assert keys([*play._ended.values()]) == {(0, 0), (0, 1)}
    assert played(play, [], 0, steps=1000) == []


def test_earlier_iterations_begin_first() -> None:
    witness = Witness(Letters(), quiet, max_live=1)
    play = ContinuousPlay(witness.collector)
    played(play, specs(2, 1), 0, steps=1)
    ended = played(play, [*specs(2, 1), *specs(2, 0)], 0, steps=1000)
    assert [(t.iteration, t.episode) for t in ended] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_without_beginning_only_live_episodes_end() -> None:
    witness = Witness(Letters(), quiet, max_live=2)
    play = ContinuousPlay(witness.collector)
    ended = played(play, specs(5), 0, steps=2)
    left = [spec for spec in specs(5) if spec.episode not in {t.episode for t in ended}]
    settled = [
        t for each in play.play(left, SAMPLING, 0, begin=False) if each is not None for t in each.trajectories
    ]
    assert 0 < len(settled) < len(left)
    assert not play._batch.live
    assert keys(played(play, left, 0, steps=1000)) == {(0, spec.episode) for spec in left}


def test_waiting_groups_are_given_back_whole_from_the_end_and_wait_again_if_the_caller_did_not_hear() -> None:
    """Groups of two. One episode is live, so its group stays; what is owed in the next call is played after all."""
    witness = Witness(Letters(), quiet, max_live=1)
    play = ContinuousPlay(witness.collector)
    owed = [replace(spec, group=spec.episode // 2) for spec in specs(7)]
    assert played(play, owed, 0, steps=2) == []
    stream = play.play(owed, SAMPLING, 0, begin=True, give_back=4)
    first = next(stream)
    assert first is not None
    assert first.given_back == ((0, 6), (0, 4), (0, 5))
    stream.close()
    assert [key for key, _ in play._batch.waiting] == ["0/1", "0/2", "0/3"]
    ended = played(play, owed, 0, steps=1000)
    assert keys(ended) == {(0, spec.episode) for spec in owed}
    assert len(witness.dice) == len({*witness.dice}), "a turn was sampled twice"
    nothing = next(play.play(owed, SAMPLING, 0, begin=True, give_back=9))
    assert nothing is not None
    assert nothing.given_back == ()


def test_a_worker_hears_the_caller_while_all_environments_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "MOST_S", 0.05)
    witness = Witness(
        Letters(), lambda seed, turn: time.sleep(2.0 * (turn == 1)), max_live=4, engine_kind=ScriptedEngine
    )
    play = ContinuousPlay(witness.collector)
    began, longest = time.monotonic(), 0.0
    for _ in play.play(specs(4), SAMPLING, 0, begin=True):
        longest, began = max(longest, time.monotonic() - began), time.monotonic()
    assert longest < 1.0
