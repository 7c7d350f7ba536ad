"""Streaming over random schedules: who plays when, who dies when, and what is lost on the way."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpost.cluster.actor_calls import DeadlineError
from rlpost.config.schema import Config
from rlpost.errors import RolloutError
from rlpost.rollout import streaming
from rlpost.rollout.collect import Batch
from rlpost.rollout.continuous import ContinuousPlay, Played
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.rollouts import SynchronousRollouts, rollouts_of
from rlpost.rollout.specs import group_specs, training_specs
from rlpost.rollout.streaming import StreamingRollouts, staleness
from rlpost.types import EpisodeSpec, Trajectory
from tests.unit.episodes import episode, turn

SAMPLING = Sampling(1.0, 8)
MAX_LIVE = 3


@dataclass
class Live:
    """An episode that is being played: the versions of its turns so far."""

    spec: EpisodeSpec
    versions: list[int]

    def trajectory(self) -> Trajectory:
        played = episode(*(replace(turn(), policy_version=v) for v in self.versions), index=self.spec.episode)
        return replace(played, iteration=self.spec.iteration, group=self.spec.group, seed=self.spec.seed)


class DiceCollector:
    """Stands in for a Collector: episodes begin in free places; dice say which take a turn, and which end."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.drained = dice, 0

    def advance(self, batch: Batch) -> list[tuple[str, Trajectory]]:
        live: dict[str, Any] = batch.live
        while batch.waiting and len(live) < MAX_LIVE:
            key, spec = batch.waiting.popleft()
            live[key] = Live(spec, [batch.policy_version])
        for each in live.values():
            if self.dice.random() < 0.3:
                each.versions.append(batch.policy_version)
        over = [key for key in live if self.dice.random() < 0.3]
        batch.engine_seconds += 0.25
        return [(key, live.pop(key).trajectory()) for key in over]

    def drain(self, batch: Batch) -> None:
        self.drained += 1


class Call:
    """An open call of a worker; `dead` once the worker has died."""

    def __init__(self, stream: Generator[Played | None]) -> None:
        self.stream, self.dead, self.cancelled = stream, False, False
        self.values: deque[Played] = deque()  # yielded, and not taken
        self.ended = False

    def advance(self) -> None:
        """The worker goes on by a step of its engine."""
        if self.dead or self.ended:
            return
        try:
            if (played := next(self.stream)) is not None:
                self.values.append(played)
        except StopIteration:
            self.ended = True


class Worker:
    def __init__(self, dice: random.Random, version: int) -> None:
        self.play_on, self.version = ContinuousPlay(DiceCollector(dice)), version  # type: ignore[arg-type]
        self.asked: list[set[tuple[int, int]]] = []

    @property
    def play(self) -> Any:
        def remote(owed: Sequence[EpisodeSpec], sampling: Sampling, begin: bool, give_back: int) -> Call:
            self.asked.append({(spec.iteration, spec.episode) for spec in owed})
            return Call(self.play_on.play(owed, sampling, self.version, begin, give_back))

        return SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=remote))


class DicePool:
    """Stands in for a RolloutPool: dice say which worker goes on, and which dies, `deaths` in all.

    `spared` of those that die get no successor while others are left. Worker 0 is `slow` times slower than others.
    """

    def __init__(
        self, cfg: Config, dice: random.Random, deaths: int = 0, spared: int = 0, slow: int = 0
    ) -> None:
        self.cfg, self.dice, self.deaths, self.spared, self.slow = cfg, dice, deaths, spared, slow
        self.restarts, self.lost, self.version = 0, [0] * cfg.rollout.workers, 1
        self.workers = [Worker(dice, 1) for _ in self.lost]
        self.gone = set[int]()
        self.calls: list[tuple[Call, int]] = []

    @property
    def ready(self) -> list[int]:
        return [
            i
            for i, worker in enumerate(self.workers)
            if i not in self.gone and worker.version == self.version
        ]

    def join(self) -> None:
        """Another worker, which serves the live version."""
        self.workers.append(Worker(self.dice, self.version))
        self.lost.append(0)

    def ask(self, worker: int, ask: Callable[[Any], Call]) -> Call:
        assert worker in self.ready
        call = ask(self.workers[worker])
        self.calls.append((call, worker))
        return call

    def time_passes(self, steps: int) -> None:
        """Workers go on, and perhaps die, while nobody waits for them."""
        for _ in range(steps):
            self.calls = [(c, i) for c, i in self.calls if not (c.cancelled or c.dead or c.ended)]
            if not self.calls:
                return
            call, worker = self.dice.choice(self.calls)
            if worker == 0 and self.dice.randrange(self.slow + 1):
                continue
            if self.deaths and self.dice.random() < 0.05:
                self.deaths -= 1
                call.dead = True
                call.values.clear()  # what nobody took is lost
            else:
                call.advance()

    def next_answers(
        self, workers: Mapping[Call, int], deadlines: Mapping[Call, float]
    ) -> tuple[Call, list[Played], bool]:
        assert workers.keys() == deadlines.keys()
        assert min(deadlines.values()) < math.inf, "somebody must be waited for by a deadline"
        while True:
            self.time_passes(1)
            for call, i in workers.items():
                if call.dead:
                    self._replace(i)
                    return call, [], True
                if call.values:
                    return call, [call.values.popleft()], False
                if call.ended:
                    return call, [], True

    def swap(self) -> None:
        """As RolloutPool.swap: those that died are replaced, and take the new version too."""
        playing = [call for call, _ in self.calls if not (call.cancelled or call.dead or call.ended)]
        assert not playing, "an actor that plays takes no swap"
        for call, i in self.calls:
            if call.dead:
                self._replace(i)
        self.version += 1
        for worker in self.workers:
            worker.version = self.version

    def _replace(self, i: int) -> None:
        if self.spared and len(self.ready) > 1:
            self.spared -= 1
            self.gone.add(i)
            return
        self.restarts += 1
        self.lost[i] += 1
        self.workers[i] = Worker(self.dice, self.version)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(calls: Mapping[Call, bool], deadline: float) -> None:
        """A worker begins a call before that is cancelled, and notices after a step, perhaps of several taken since."""
        for call, begun in calls.items():
            if not begun:
                call.advance()
            call.cancelled = True
            call.stream.close()

    monkeypatch.setattr(streaming, "cancel", cancel)


def config(bound: int, workers: int = 2, iterations: int = 5, episodes: int = 6) -> Config:
    cfg = Config()
    cfg.rollout.max_staleness, cfg.rollout.workers, cfg.algo.iterations = bound, workers, iterations
    cfg.rollout.episodes, cfg.rollout.group_size = episodes, 2
    cfg.rollout.max_num_seqs = MAX_LIVE
    return cfg


@dataclass
class Learnt:
    batches: list[list[Trajectory]]
    lines: list[dict[str, float]]


def train(cfg: Config, pool: DicePool, refills: int = 0, settles: bool = False, joins: int = 0) -> Learnt:
    """The loop of rlpost.tasks.rl, without a learner. Up to `joins` workers join, between iterations or at a swap."""
    rollouts, learnt = StreamingRollouts(pool, cfg, SAMPLING), Learnt([], [])  # type: ignore[arg-type]

    def may_join() -> None:
        nonlocal joins
        if joins and pool.dice.random() < 0.4:
            joins -= 1
            pool.join()

    for iteration in range(cfg.algo.iterations):
        may_join()
        specs = training_specs(cfg, iteration)
        batch = rollouts.collect(specs)
        if refills:
            more = group_specs(cfg, iteration, range(len(specs) // 2, len(specs) // 2 + refills))
            batch += rollouts.collect(more)
        learnt.batches.append(batch)
        learnt.lines.append(rollouts.metrics(batch, pool.version))
        pool.time_passes(pool.dice.randrange(12))  # the update
        with rollouts.swapping(iteration + 1):
            may_join()
            pool.swap()
        if settles and iteration % 2:
            pool.time_passes(pool.dice.randrange(3))
            rollouts.settle()
            left = [i for i, worker in enumerate(pool.workers) if worker.play_on._batch.live]
            assert pool.gone.issuperset(left), "an engine is not free"
    return learnt


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    bound=st.integers(1, 4),
    workers=st.integers(1, 3),
    deaths=st.integers(0, 3),
    refills=st.integers(0, 2),
    settles=st.booleans(),
    joins=st.integers(0, 3),
    spared=st.integers(0, 2),
    episodes=st.sampled_from([6, 20]),
    slow=st.sampled_from([0, 0, 50]),
)
def test_every_episode_is_learnt_from_once_and_no_turn_is_too_old(
    seed: int,
    bound: int,
    workers: int,
    deaths: int,
    refills: int,
    settles: bool,
    joins: int,
    spared: int,
    episodes: int,
    slow: int,
) -> None:
    cfg = config(bound, workers, episodes=episodes)
    pool = DicePool(cfg, random.Random(seed), deaths, spared, slow)
    learnt = train(cfg, pool, refills, settles, joins)
    for iteration, batch in enumerate(learnt.batches):
        assert [(t.iteration, t.episode) for t in batch] == [
            (iteration, number) for number in range(episodes + 2 * refills)
        ]
        live = iteration + 1  # DicePool begins with version 1
        ages = [live - turn.policy_version for t in batch for turn in t.turns]
        assert 0 <= min(ages) <= max(ages) <= bound
        assert learnt.lines[iteration]["staleness/max"] == max(ages)
    assert learnt.lines[-1]["streaming/in_flight"] == 0


def test_a_worker_that_joins_gets_a_share_of_what_is_handed_out_afterwards() -> None:
    cfg = config(bound=1, workers=1)
    cfg.rollout.max_num_seqs = 128  # so that nothing is passed on
    pool = DicePool(cfg, random.Random(0))
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    rollouts.collect(training_specs(cfg, 0))
    pool.join()
    with rollouts.swapping(1):
        pool.swap()
    batch = rollouts.collect(training_specs(cfg, 1))
    assert len(batch) == 6
    shares = [{each for each in worker.asked[-1] if each[0] == 2} for worker in pool.workers]
    assert shares == [{(2, 0), (2, 1)} | {(2, 2)}, {(2, 3), (2, 4), (2, 5)}]
    assert not any(iteration < 2 for asked in pool.workers[1].asked for iteration, _ in asked)


def test_what_a_worker_owes_that_is_lost_for_good_is_played_by_the_others() -> None:
    cfg = config(bound=1, workers=2, iterations=2)
    pool = DicePool(cfg, random.Random(1), deaths=1, spared=1)
    pool.dice.random = lambda: 0.01  # type: ignore[method-assign]  # one dies in its first step
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    assert [t.episode for t in rollouts.collect(training_specs(cfg, 0))] == list(range(6))
    assert (len(pool.gone), pool.restarts) == (1, 0)


@pytest.mark.parametrize("lost", [0, 2])
def test_an_idle_worker_takes_over_what_another_has_not_begun(lost: int) -> None:
    """Worker 0 is slow. In groups of two, the other plays most of what both were given, and nothing is played twice."""
    cfg = config(bound=1, workers=2, iterations=2, episodes=40)
    pool = DicePool(cfg, random.Random(3), deaths=lost, slow=50)
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    batches = [rollouts.collect(training_specs(cfg, 0))]
    passed_on = rollouts.metrics(batches[0], 1)["streaming/passed_on"]
    with rollouts.swapping(1):
        pool.swap()
    batches.append(rollouts.collect(training_specs(cfg, 1)))
    assert [[t.episode for t in batch] for batch in batches] == [list(range(40))] * 2
    assert passed_on >= 20
    own = [{each for asked in worker.asked for each in asked} for worker in pool.workers]
    given = own[1] - {(i, e) for i in range(2) for e in range(20, 40)}
    assert len(given) >= 20
    assert all((i, e ^ 1) in given for i, e in given), "a group was torn"


def test_what_an_engine_decodes_at_once_is_left_with_it() -> None:
    cfg = config(bound=1, workers=2, iterations=2, episodes=2 * MAX_LIVE)
    cfg.rollout.max_num_seqs = 2 * MAX_LIVE
    pool = DicePool(cfg, random.Random(3), slow=50)
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    batch = rollouts.collect(training_specs(cfg, 0))
    assert rollouts.metrics(batch, 1)["streaming/passed_on"] == 0
    assert [len(worker.asked) for worker in pool.workers] == [1, 1], "nobody was interrupted"


def test_engines_play_ahead_as_far_as_the_bound_allows() -> None:
    """During a long update, a worker plays all episodes that it may begin; the next batches are there at once."""
    cfg = config(bound=2, workers=1)
    pool = DicePool(cfg, random.Random(0))
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    rollouts.collect(training_specs(cfg, 0))
    assert pool.workers[0].asked == [{(i, e) for i in range(3) for e in range(6)}]
    pool.time_passes(500)
    with rollouts.swapping(1):
        pool.swap()
    assert {iteration for iteration, _ in pool.workers[0].asked[-1]} == {1, 2, 3}
    pool.deaths, batch = 0, rollouts.collect(training_specs(cfg, 1))
    assert {t.policy_version for t in batch} == {1}
    assert rollouts.metrics(batch, pool.version)["staleness/mean"] == 1.0


def test_what_a_lost_worker_owes_is_played_again_and_counted() -> None:
    cfg = config(bound=1, workers=1, iterations=2)
    pool = DicePool(cfg, random.Random(1), deaths=1)
    pool.dice.random = lambda: 0.01  # type: ignore[method-assign]  # it dies in its first step
    rollouts = StreamingRollouts(pool, cfg, SAMPLING)  # type: ignore[arg-type]
    batch = rollouts.collect(training_specs(cfg, 0))
    assert [t.episode for t in batch] == list(range(6))
    assert rollouts.metrics(batch, 1)["streaming/replayed"] == 12


def test_a_wait_names_only_those_that_owe_what_is_waited_for() -> None:
    cfg = config(bound=1, workers=2)
    seen: list[list[float]] = []

    class Late(DicePool):
        def next_answers(self, workers: Any, deadlines: Any) -> Any:
            seen.append(list(deadlines.values()))
            raise DeadlineError("late")

    rollouts = StreamingRollouts(Late(cfg, random.Random(0)), cfg, SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(DeadlineError):
        rollouts.collect(training_specs(cfg, 0)[:2])  # group 0, which worker 0 plays
    ((first, second),) = seen
    assert first <= time.monotonic() + cfg.rollout.timeout_s
    assert second == math.inf


def test_the_share_of_time_that_engines_idle_and_the_learner_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("rlpost.rollout.streaming.time", SimpleNamespace(monotonic=lambda: clock.now))
    meter = streaming._Meter(2)
    meter.worked(0, 3.0)
    meter.worked(0, 4.0)
    meter.worked(1, 2.0)
    meter.waited += 5.0
    clock.now += 10.0
    assert meter.lap() == {
        "streaming/engines_idle": pytest.approx(1 - 6 / 20),
        "streaming/learner_waits": pytest.approx(0.5),
        "streaming/replayed": 0.0,
        "streaming/passed_on": 0.0,
    }
    meter.lost(0, 7)
    meter.passed_on += 3
    meter.worked(0, 1.0)
    clock.now += 10.0
    assert meter.lap() == {
        "streaming/engines_idle": pytest.approx(1 - 1 / 20),
        "streaming/learner_waits": 0.0,
        "streaming/replayed": 7.0,
        "streaming/passed_on": 3.0,
    }


def test_a_turn_older_than_the_bound_is_refused_by_name() -> None:
    old = replace(episode(replace(turn(), policy_version=3), turn()), iteration=9)
    assert staleness([old, episode()], live=5, bound=2) == {"staleness/mean": 2.0, "staleness/max": 2.0}
    with pytest.raises(RolloutError, match="Episode 0 of iteration 9 has a turn of a policy 3 updates old"):
        staleness([old], live=6, bound=2)


def test_without_staleness_the_pool_plays_as_ever() -> None:
    """The same call with the same arguments, nothing before and after it, and no metric more."""
    cfg, asked = config(bound=0), []

    def collect(specs: Any, sampling: Any) -> list[str]:
        asked.append((specs, sampling))
        return ["played"]

    rollouts = rollouts_of(cfg, SimpleNamespace(collect=collect))  # type: ignore[arg-type]
    assert isinstance(rollouts, SynchronousRollouts)
    specs = training_specs(cfg, 0)
    played: list[Any] = rollouts.collect(specs)
    with rollouts.swapping(1):
        rollouts.settle()
    assert played == ["played"]
    assert asked == [(specs, Sampling(cfg.rollout.temperature, cfg.rollout.max_new_tokens))]
    assert rollouts.metrics([episode(turn())], 100) == {}
