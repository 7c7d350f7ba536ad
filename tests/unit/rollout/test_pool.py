"""How a batch is shared among the workers, and what comes of workers that die, hang or refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions as ray_errors

from rlpost.cluster import capacity
from rlpost.cluster.actor_calls import DeadlineError
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, RolloutError, SwapError
from rlpost.rollout import pool
from rlpost.rollout.engine.protocol import Sampling, SwapReport
from rlpost.rollout.groups import GroupAssembler
from rlpost.rollout.pool import RolloutPool, shares_of
from rlpost.types import EpisodeSpec, Trajectory
from tests.unit.episodes import episode, turn


def specs_of(groups: list[int]) -> list[EpisodeSpec]:
    return [EpisodeSpec("v", "train", 0, i, group, 7, i) for i, group in enumerate(groups)]


@given(groups=st.lists(st.integers(0, 9), max_size=60), workers=st.integers(1, 7))
def test_every_episode_has_one_worker_and_few_groups_are_torn(groups: list[int], workers: int) -> None:
    shares = shares_of(specs_of(groups), workers)
    assert len(shares) == workers
    assert sorted(k for share in shares for k in share) == list(range(len(groups)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    workers_of = {
        group: sum(any(groups[k] == group for k in share) for share in shares) for group in set(groups)
    }
    assert sum(count - 1 for count in workers_of.values()) <= workers - 1


def test_groups_stay_whole_where_they_divide_the_batch() -> None:
    assert shares_of(specs_of([0, 0, 1, 1, 2, 2, 3, 3]), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    interleaved = shares_of(specs_of([0, 1, 0, 1]), 2)
    assert interleaved == [[0, 2], [1, 3]]


def test_fewer_episodes_than_workers_leave_some_idle() -> None:
    assert sorted(map(len, shares_of(specs_of([0, 1]), 3))) == [0, 1, 1]


def trajectory(spec: EpisodeSpec, version: int = 1) -> Trajectory:
    played = episode(replace(turn(), policy_version=version), index=spec.episode)
    return replace(played, group=spec.group)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[EpisodeSpec], list[int]]:
    """Specs, and the places of their episodes as they come: workers between one another, some shares twice."""
    specs = specs_of(draw(st.lists(st.integers(0, 5), max_size=24)))
    shares = [draw(st.permutations(share)) for share in shares_of(specs, draw(st.integers(1, 4)))]
    queues = [share[: draw(st.integers(0, len(share)))] + share for share in shares]  # died, and once more
    order = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    positions = [iter(queue) for queue in queues]
    return specs, [next(positions[i]) for i in order]


@given(arrivals())
def test_every_group_comes_once_and_whole_however_its_episodes_come(
    arrived: tuple[list[EpisodeSpec], list[int]],
) -> None:
    specs, places = arrived
    assembler, groups, seen = GroupAssembler(specs), list[list[Trajectory]](), set[int]()
    for n, place in enumerate(places):
        seen.add(place)
        if group := assembler.add(place, trajectory(specs[place], version=n)):
            groups.append(group)
            wanted = [k for k, spec in enumerate(specs) if spec.group == group[0].group]
            assert set(wanted) <= seen
            assert [t.episode for t in group] == wanted
            assert [t.policy_version for t in group] == [places.index(k) for k in wanted]  # the first to come
    numbers = [group[0].group for group in groups]
    assert sorted(numbers) == sorted({spec.group for spec in specs})
    assert assembler.missing == []


@dataclass(eq=False)
class Ref:
    """What an actor will answer: a value, an error to be raised, or, after `seconds`, either."""

    outcome: Any
    seconds: float = 0.0
    asked: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        return time.monotonic() >= self.asked + self.seconds


NEVER = float("inf")
SAMPLING = Sampling(1.0, 8)


class Stream:
    """What an actor yields: (seconds after it was asked, episodes or an error), in order. Then it ends."""

    def __init__(self, *yields: tuple[float, Any]) -> None:
        self.yields, self.asked = list(yields), time.monotonic()
        self.cancelled = False

    @property
    def ready(self) -> bool:
        return not self.yields or time.monotonic() >= self.asked + self.yields[0][0]

    def __next__(self) -> Ref:
        assert self.ready, "the pool waits with a deadline before"
        if not self.yields:
            raise StopIteration
        _, outcome = self.yields.pop(0)
        if isinstance(outcome, Exception):
            self.yields = []
        return Ref(outcome)


Plays = Callable[[Sequence[EpisodeSpec]], Stream]


def plays(seconds: float = 0.0, dies_after: int | None = None, version: int = 1) -> Plays:
    """An episode every so many seconds, until all are played or the actor dies."""

    def stream(specs: Sequence[EpisodeSpec]) -> Stream:
        steps = [((n + 1) * seconds, [(n, trajectory(spec, version))]) for n, spec in enumerate(specs)]
        if dies_after is not None:
            steps = [*steps[:dies_after], (dies_after * seconds, died())]
        return Stream(*steps)

    return stream


def hangs(specs: Sequence[EpisodeSpec]) -> Stream:
    return Stream((NEVER, []))


def report(version: int) -> SwapReport:
    return SwapReport(version, "", 1, 1, 0.0, 0.0, 0.0)


class Method:
    def __init__(self, outcome: Callable[..., Ref]) -> None:
        self.remote = outcome


class FakeActor:
    """Answers as its script says: by method, what each next call comes to; True where nothing is scripted."""

    def __init__(self, **script: list[Any]) -> None:
        self.script, self.swapped = script, list[Any]()
        self.begun = list[int]()
        self.asked, self.streams = list[list[int]](), list[Stream]()
        self.killed = False

    def _next(self, method: str, default: Any) -> Ref:
        scripted = self.script.get(method)
        outcome = scripted.pop(0) if scripted else default
        return outcome if isinstance(outcome, Ref) else Ref(outcome)

    @property
    def start(self) -> Method:
        return Method(lambda cfg, folder, given: self._next("start", None))

    @property
    def __ray_ready__(self) -> Method:
        return Method(lambda: Ref(died() if self.killed else True))

    @property
    def begin(self) -> Method:
        def begin(cfg: Config, objects: Any) -> Ref:
            self.begun.append(cfg.seed)
            return self._next("begin", None)

        return Method(begin)

    @property
    def swap(self) -> Method:
        def swap(adapter: Any, canary: Any) -> Ref:
            self.swapped.append(adapter)
            return self._next("swap", report(1))

        return Method(swap)

    @property
    def memory(self) -> Method:
        return Method(lambda: self._next("memory", 0.0))

    @property
    def close(self) -> Method:
        return Method(lambda: self._next("close", []))

    @property
    def stream(self) -> SimpleNamespace:
        def stream(specs: Sequence[EpisodeSpec], sampling: Sampling) -> Stream:
            scripted = self.script.get("stream")
            self.asked.append([spec.episode for spec in specs])
            self.streams.append((scripted.pop(0) if scripted else plays())(specs))
            return self.streams[-1]

        return SimpleNamespace(
            options=lambda num_returns: Method(stream) if num_returns == "streaming" else None
        )


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RolloutPool, list[FakeActor]]]:
    """A pool on scripted actors, without Ray: the first ones, then their replacements in order."""

    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        until = time.monotonic() + timeout
        while not (ready := [ref for ref in refs if ref.ready]) and time.monotonic() < until:
            time.sleep(0.005)
        return ready[:num_returns], [ref for ref in refs if ref not in ready[:num_returns]]

    def get(ref: Ref, timeout: float) -> Any:
        if not wait([ref], 1, timeout)[0]:
            raise ray_errors.GetTimeoutError("late")
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def kill(actor: FakeActor) -> None:
        actor.killed = True

    for name, stand_in in (("wait", wait), ("get", get), ("kill", kill), ("put", lambda x: x)):
        monkeypatch.setattr(ray, name, stand_in)
    monkeypatch.setattr(capacity, "summary", lambda: "1 of 2 CPUs on node a, 10.0.0.1")
    monkeypatch.setattr(ray, "ObjectRefGenerator", Stream)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cancel", lambda stream: setattr(stream, "cancelled", True))

    def make(
        *actors: FakeActor, workers: int, restarts: int = 3, min_workers: int | None = None
    ) -> tuple[RolloutPool, list[FakeActor]]:
        left = list(actors)
        monkeypatch.setattr(RolloutPool, "_spawn", lambda self, i: left.pop(0))
        cfg = Config()
        cfg.rollout.workers, cfg.rollout.restarts, cfg.rollout.timeout_s = workers, restarts, 0.3
        cfg.rollout.min_workers, cfg.ray.timeout_s = min_workers, 0.2
        pool = RolloutPool(cfg, Path())
        pool.wait_ready()
        return pool, list(actors)

    return make


def died() -> Exception:
    return ray_errors.ActorDiedError()


def played(pool: RolloutPool, episodes: int) -> list[int]:
    return [t.episode for t in pool.collect(specs_of(list(range(episodes))), SAMPLING)]


def test_a_replacement_that_dies_while_starting_is_replaced_while_restarts_are_left(pool_of: Any) -> None:
    actors = [
        FakeActor(stream=[plays(dies_after=0)]),
        FakeActor(start=[died()]),
        FakeActor(swap=[died()]),
        FakeActor(),
    ]
    pool, _ = pool_of(*actors, workers=1)
    pool.swap("adapter", None)
    assert played(pool, 4) == [0, 1, 2, 3]
    assert pool.restarts == 3
    assert [actor.killed for actor in actors] == [True, True, True, False]
    assert actors[-1].swapped == ["adapter"]


def test_a_worker_is_recycled_with_the_live_adapter_and_is_not_counted_as_lost(pool_of: Any) -> None:
    actors = [FakeActor(memory=[7.0]), FakeActor(memory=[9.0], close=[died()]), FakeActor(), FakeActor()]
    pool, _ = pool_of(*actors, workers=2)
    pool.swap("adapter", None)
    assert pool.memory() == {0: 7.0, 1: 9.0}
    pool.recycle(1)
    assert [actor.killed for actor in actors] == [False, True, False, False]
    assert actors[2].swapped == ["adapter"]
    assert pool.restarts == 0
    assert sorted(played(pool, 4)) == [0, 1, 2, 3]
    assert actors[2].asked == [[2, 3]]


def test_a_recycled_worker_that_dies_while_starting_is_replaced_and_counted(pool_of: Any) -> None:
    actors = [FakeActor(), FakeActor(start=[died()]), FakeActor()]
    pool, _ = pool_of(*actors, workers=1)
    pool.swap("adapter", None)
    pool.recycle(0)
    assert pool.restarts == 1
    assert actors[2].swapped == ["adapter"]


def test_restarts_end_where_replacements_go_on_dying(pool_of: Any) -> None:
    pool, actors = pool_of(
        FakeActor(stream=[plays(dies_after=0)]),
        *(FakeActor(start=[died()]) for _ in range(5)),
        workers=1,
        restarts=2,
    )
    with pytest.raises(RolloutError, match=r"worker number 3 to be lost; rollout\.restarts=2 allows no more"):
        played(pool, 4)
    assert sum(actor.killed for actor in actors) == 2


def test_an_actor_that_ray_cannot_reach_is_killed_before_another_takes_its_place(pool_of: Any) -> None:
    unreachable = ray_errors.ActorUnavailableError("no connection", None)
    lost = FakeActor(stream=[lambda specs: Stream((0.0, unreachable))])
    pool, _ = pool_of(lost, FakeActor(), workers=1)
    assert played(pool, 2) == [0, 1]
    assert lost.killed


def test_all_workers_have_one_deadline_which_names_those_that_are_silent(pool_of: Any) -> None:
    silent = [FakeActor(stream=[hangs]) for _ in range(3)]
    pool, _ = pool_of(silent[0], FakeActor(), *silent[1:], workers=4)
    began = time.monotonic()
    with pytest.raises(
        DeadlineError, match="from: rollout worker 0, rollout worker 2, rollout worker 3"
    ) as caught:
        played(pool, 8)
    assert time.monotonic() - began < 0.3 * 2
    assert "worker 1" not in str(caught.value)


def test_a_successor_has_a_deadline_of_its_own(pool_of: Any) -> None:
    """The whole share is played again, however late its first player died."""
    late = FakeActor(stream=[plays(seconds=0.2, dies_after=1)])
    pool, _ = pool_of(late, FakeActor(stream=[plays(seconds=0.1)]), workers=1)
    assert played(pool, 2) == [0, 1]


def test_groups_come_as_they_finish_and_collect_brings_them_into_the_order_of_the_specs(pool_of: Any) -> None:
    specs = specs_of([2, 0, 2, 1, 0, 1])  # shares by group: 0, 0, 1 and 1, 2, 2; group 1 is torn
    slow, fast = FakeActor(stream=[plays(0.04)]), FakeActor(stream=[plays(0.01)])
    pool, _ = pool_of(slow, fast, workers=2)
    groups = list(pool.stream(specs, SAMPLING))
    assert [[t.episode for t in group] for group in groups] == [[0, 2], [1, 4], [3, 5]]
    assert (slow.asked, fast.asked) == ([[1, 4, 3]], [[5, 0, 2]])
    assert [t.episode for t in pool.collect(specs, SAMPLING)] == [0, 1, 2, 3, 4, 5]


def test_a_group_is_handed_over_while_other_workers_play(pool_of: Any) -> None:
    pool, _ = pool_of(FakeActor(stream=[hangs]), FakeActor(), workers=2)
    with closing(pool.stream(specs_of([0, 0, 1, 1]), SAMPLING)) as stream:
        assert [t.episode for t in next(stream)] == [2, 3]


def test_a_successor_plays_the_whole_share_and_nothing_is_handed_over_twice(pool_of: Any) -> None:
    """The first actor played groups 0 and 1 and half of 2 before it died."""
    dies, successor = FakeActor(stream=[plays(dies_after=5)]), FakeActor(stream=[plays(version=2)])
    pool, _ = pool_of(dies, successor, workers=1)
    groups = list(pool.stream(specs_of([0, 0, 1, 1, 2, 2, 3, 3]), SAMPLING))
    assert successor.asked == dies.asked == [list(range(8))]
    assert [[t.episode for t in group] for group in groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [t.policy_version for group in groups for t in group] == [1, 1, 1, 1, 1, 2, 2, 2]


def test_a_successor_plays_the_share_of_the_one_that_died(pool_of: Any) -> None:
    dies, successor = FakeActor(stream=[plays(dies_after=1)]), FakeActor()
    pool, (first, *_) = pool_of(FakeActor(), dies, successor, workers=2)
    groups = list(pool.stream(specs_of([0, 1, 1, 2]), SAMPLING))
    assert (first.asked, successor.asked, dies.asked) == ([[0, 1]], [[2, 3]], [[2, 3]])
    assert sorted([t.episode for t in group] for group in groups) == [[0], [1, 2], [3]]


def test_the_deadline_is_for_a_whole_share_however_many_episodes_came_of_it(pool_of: Any) -> None:
    trickles = FakeActor(stream=[plays(seconds=0.12)])
    pool, _ = pool_of(trickles, FakeActor(), workers=2)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"No answer within 0\.3 s from: rollout worker 0\. "):
        played(pool, 20)
    assert 0.3 <= time.monotonic() - began < 0.5


def test_the_time_of_a_busy_caller_costs_no_worker_its_deadline(pool_of: Any) -> None:
    pool, _ = pool_of(FakeActor(stream=[plays(seconds=0.01)]), workers=1)
    numbers = []
    for group in pool.stream(specs_of([0, 1, 2]), SAMPLING):
        numbers.append(group[0].group)
        time.sleep(0.2)
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize("how", ["closed", "raised", "late", "dead"])
def test_whatever_ends_a_stream_no_worker_goes_on(pool_of: Any, how: str) -> None:
    other = plays(dies_after=0) if how == "dead" else hangs
    actors = FakeActor(stream=[plays(seconds=0.1)]), FakeActor(stream=[other])
    pool, _ = pool_of(*actors, workers=2, restarts=0)
    ends = {"raised": ZeroDivisionError, "late": DeadlineError, "dead": RolloutError}

    def consume() -> None:
        with closing(pool.stream(specs_of([*range(8)]), SAMPLING)) as stream:
            for _ in stream:
                if how == "closed":
                    return
                if how == "raised":
                    raise ZeroDivisionError

    if how in ends:
        with pytest.raises(ends[how]):
            consume()
    else:
        consume()
    assert all(actor.streams[0].cancelled for actor in actors)


def test_what_a_worker_raises_ends_the_stream_and_stops_the_others(pool_of: Any) -> None:
    fails = FakeActor(stream=[lambda specs: Stream((0.0, RolloutError("64 calls hang")))])
    busy = FakeActor(stream=[hangs])
    pool, _ = pool_of(fails, busy, workers=2)
    with pytest.raises(RolloutError, match="64 calls hang"):
        played(pool, 4)
    assert busy.streams[0].cancelled


def test_a_stream_that_ended_is_not_cancelled(pool_of: Any) -> None:
    pool, (actor,) = pool_of(FakeActor(), workers=1)
    played(pool, 4)
    assert not actor.streams[0].cancelled


def test_nothing_to_play_asks_nobody(pool_of: Any) -> None:
    pool, (actor,) = pool_of(FakeActor(), workers=1)
    assert pool.collect([], SAMPLING) == []
    assert actor.asked == []


def test_a_refused_swap_brings_all_back_in_one_deadline_and_one_that_dies_then_is_replaced(
    pool_of: Any,
) -> None:
    refuses = FakeActor(swap=[report(1), SwapError("does not take")])
    dies = FakeActor(swap=[report(1), report(2), died()])
    successor = FakeActor()
    pool, _ = pool_of(refuses, dies, successor, workers=2)
    first, second = (SimpleNamespace(version=version) for version in (1, 2))
    pool.swap(first, None)
    with pytest.raises(SwapError, match=r"version 2 did not take\. rollout worker 0: does not take"):
        pool.swap(second, None)
    assert refuses.swapped == [first, second, first]
    assert successor.swapped == [first, first]  # the live one, and once more when asked to go back


def test_workers_that_cannot_go_back_are_named(pool_of: Any) -> None:
    pool, _ = pool_of(
        FakeActor(swap=[report(1), SwapError("no"), SwapError("nor back")]), FakeActor(), workers=2
    )
    first, second = (SimpleNamespace(version=version) for version in (1, 2))
    pool.swap(first, None)
    with pytest.raises(SwapError, match="not every worker is back at 1: rollout worker 0: nor back"):
        pool.swap(second, None)


def test_environments_are_closed_in_every_worker_and_what_went_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All within one deadline: a worker that hangs does not hold up the others for as long each."""
    waited = list[float]()

    def get(ref: Any, timeout_s: float, who: str) -> Any:
        waited.append(timeout_s)
        if isinstance(ref, Exception):
            raise ref
        return ref

    answers = [[], ["KeyError: 3"], ClusterError("dead"), []]
    workers = [SimpleNamespace(close=SimpleNamespace(remote=lambda said=said: said)) for said in answers]
    monkeypatch.setattr(pool, "get", get)
    members = [
        SimpleNamespace(actor=actor, name=f"rollout worker {i}", started=True)
        for i, actor in enumerate(workers)
    ]
    whole = pool.RolloutPool.__new__(pool.RolloutPool)
    whole._supervisor = SimpleNamespace(members=SimpleNamespace(present=members))  # type: ignore[assignment]
    assert whole.close_environments() == ["rollout worker 1: KeyError: 3", "rollout worker 2: dead"]
    assert len(waited) == 4
    assert sorted(waited, reverse=True) == waited
    assert waited[0] <= pool.CLOSING_S


def test_the_next_run_begins_with_all_restarts_and_no_adapter(pool_of: Any) -> None:
    actors = [
        FakeActor(stream=[plays(dies_after=0)]),
        FakeActor(stream=[plays(), plays(dies_after=0)]),
        FakeActor(),
    ]
    pool, _ = pool_of(*actors, workers=1, restarts=1)
    pool.swap("adapter", None)
    assert played(pool, 2) == [0, 1]
    assert pool.restarts == 1
    cfg = replace(pool.cfg, seed=7)
    pool.begin(cfg)
    assert (pool.cfg.seed, pool.restarts) == (7, 0)
    assert actors[1].begun == [7]
    assert played(pool, 2) == [0, 1], "a worker may be lost again"
    assert actors[2].swapped == [], "the run before had an adapter, this one has none yet"


@pytest.mark.parametrize(
    ("outcome", "error", "told"),
    [
        (SwapError("the base came back changed"), SwapError, "came back changed"),
        (Ref(None, NEVER), ClusterError, "rollout worker 1"),
        (ray_errors.ActorDiedError(), ClusterError, "rollout worker 1"),
    ],
)
def test_a_worker_that_does_not_begin_the_next_run_is_an_error(
    pool_of: Any, outcome: Any, error: type[Exception], told: str
) -> None:
    pool, _ = pool_of(FakeActor(), FakeActor(begin=[outcome]), workers=2)
    with pytest.raises(error, match=told):
        pool.begin(pool.cfg)
