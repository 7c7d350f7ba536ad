"""How a batch is shared among the workers, and what comes of workers that die, hang or refuse."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions as ray_errors

from rlpost.cluster.actor_calls import DeadlineError
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, RolloutError, SwapError
from rlpost.rollout import pool
from rlpost.rollout.engine.protocol import Sampling, SwapReport
from rlpost.rollout.pool import RolloutPool, shares_of
from rlpost.types import EpisodeSpec


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


def report(version: int) -> SwapReport:
    return SwapReport(version, "", 1, 1, 0.0, 0.0, 0.0)


class Method:
    def __init__(self, outcome: Callable[..., Ref]) -> None:
        self.remote = outcome


class FakeActor:
    """Answers as its script says: by method, what each next call comes to; True where nothing is scripted."""

    def __init__(self, **script: list[Any]) -> None:
        self.script, self.swapped = script, []  # type: ignore[var-annotated]
        self.killed = False

    def _next(self, method: str, default: Any) -> Ref:
        scripted = self.script.get(method)
        outcome = scripted.pop(0) if scripted else default
        return outcome if isinstance(outcome, Ref) else Ref(outcome)

    @property
    def start(self) -> Method:
        return Method(lambda cfg, folder: self._next("start", None))

    @property
    def swap(self) -> Method:
        def swap(adapter: Any, canary: Any) -> Ref:
            self.swapped.append(adapter)
            return self._next("swap", report(1))

        return Method(swap)

    @property
    def collect(self) -> Method:
        return Method(lambda specs, sampling: self._next("collect", [spec.episode for spec in specs]))


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RolloutPool, list[FakeActor]]]:
    """A pool on scripted actors, without Ray: the first ones, then their replacements in order."""

    def wait(refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        until = time.monotonic() + timeout
        while not (ready := [ref for ref in refs if ref.ready]) and time.monotonic() < until:
            time.sleep(0.005)
        return ready[:1], [ref for ref in refs if ref not in ready[:1]]

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
    monkeypatch.setattr(ray, "available_resources", dict)

    def make(*actors: FakeActor, workers: int, restarts: int = 3) -> tuple[RolloutPool, list[FakeActor]]:
        left = list(actors)
        monkeypatch.setattr(RolloutPool, "_spawn", lambda self: left.pop(0))
        cfg = Config()
        cfg.rollout.workers, cfg.rollout.restarts, cfg.rollout.timeout_s = workers, restarts, 0.3
        pool = RolloutPool(cfg, Path())
        pool.wait_ready()
        return pool, list(actors)

    return make


def died() -> Exception:
    return ray_errors.ActorDiedError()


def played(pool: RolloutPool, episodes: int) -> list[Any]:
    return pool.collect(specs_of(list(range(episodes))), Sampling(1.0, 8))


def test_a_replacement_that_dies_while_starting_is_replaced_while_restarts_are_left(pool_of: Any) -> None:
    actors = [
        FakeActor(collect=[died()]),
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


def test_restarts_end_where_replacements_go_on_dying(pool_of: Any) -> None:
    pool, actors = pool_of(
        FakeActor(collect=[died()]), *(FakeActor(start=[died()]) for _ in range(5)), workers=1, restarts=2
    )
    with pytest.raises(RolloutError, match=r"worker number 3 to be lost; rollout\.restarts=2 allows no more"):
        played(pool, 4)
    assert sum(actor.killed for actor in actors) == 2


def test_an_actor_that_ray_cannot_reach_is_killed_before_another_takes_its_place(pool_of: Any) -> None:
    lost = FakeActor(collect=[ray_errors.ActorUnavailableError("no connection", None)])
    pool, _ = pool_of(lost, FakeActor(), workers=1)
    assert played(pool, 2) == [0, 1]
    assert lost.killed


def test_all_workers_have_one_deadline_which_names_those_that_are_silent(pool_of: Any) -> None:
    silent = [FakeActor(collect=[Ref([], NEVER)]) for _ in range(3)]
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
    pool, _ = pool_of(FakeActor(collect=[Ref(died(), 0.2)]), FakeActor(collect=[Ref([0, 1], 0.2)]), workers=1)
    assert played(pool, 2) == [0, 1]


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
    whole = pool.RolloutPool.__new__(pool.RolloutPool)
    whole._actors = workers
    assert whole.close_environments() == ["rollout worker 1: KeyError: 3", "rollout worker 2: dead"]
    assert len(waited) == 4
    assert sorted(waited, reverse=True) == waited
    assert waited[0] <= pool.CLOSING_S
