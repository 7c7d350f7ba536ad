"""Deaths, replacements, missing nodes and missing workers, on a clock of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.cluster.actor_calls import DeadlineError
from rlpost.cluster.placement import Placement, Plan
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, LearnerError, RolloutError
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.pool import RolloutPool, shares_of
from rlpost.types import EpisodeSpec
from tests.unit.rollout.simulated_ray import NEVER, Actor, Life, SimulatedRay

PLACING_S, TIMEOUT_S = 20.0, 60.0
SAMPLING = Sampling(1.0, 8)


def specs_of(count: int) -> list[EpisodeSpec]:
    return [EpisodeSpec("v", "train", 0, i, i // 2, 7, i) for i in range(count)]


@contextmanager
def simulated(
    lives: Sequence[Life],
    workers: int,
    restarts: int = 3,
    min_workers: int | None = None,
    sleep: bool = False,
    max_workers: int | None = None,
) -> Iterator[tuple[SimulatedRay, RolloutPool, list[str]]]:
    """A Ray, a pool whose workers are up, and what the pool tells."""
    with pytest.MonkeyPatch.context() as patch:
        world = SimulatedRay(patch, lives)

        def spawn(pool: RolloutPool, options: dict[str, Any]) -> Actor:
            most = max_workers or workers
            assert sum(actor.alive for actor in world.actors) < most, "the one before was not fenced"
            return world.spawn()

        patch.setattr(RolloutPool, "_spawn", spawn)
        cfg, told = Config(), list[str]()
        cfg.rollout.workers, cfg.rollout.restarts, cfg.rollout.min_workers = workers, restarts, min_workers
        cfg.rollout.timeout_s, cfg.ray.timeout_s = TIMEOUT_S, PLACING_S
        cfg.rollout.sleep, cfg.rollout.max_workers = sleep, max_workers
        node_of_worker = Placement.node_of_worker
        patch.setattr(Placement, "node_of_worker", lambda p, i: node_of_worker(p, i) or f"node {i}")
        pool = RolloutPool(cfg, Path(), Placement(Plan.of(cfg), joined=True))
        pool.attend(told.append, lambda: None)
        pool.wait_ready()
        yield world, pool, told


def swap(pool: RolloutPool, version: int) -> None:
    adapter: Any = SimpleNamespace(version=version)
    canary: Any = None
    pool.swap(adapter, canary)


def versions(pool: RolloutPool, episodes: int) -> list[int | None]:
    """Play; check that every episode came once and in order; return the versions that played them."""
    played = pool.collect(specs_of(episodes), SAMPLING)
    assert [t.episode for t in played] == list(range(episodes))
    return [t.policy_version for t in played]


# A worker that is up plays in the first minute; a death comes at any time of a run, or never.
LATER = st.one_of(st.just(NEVER), st.floats(0.0, 60.0))
LIVES = st.builds(
    Life,
    placed=st.sampled_from([0.0, 0.0, 3.0, 15.0, 40.0, NEVER]),
    start=st.sampled_from([1.0, 10.0]),
    an_episode=st.sampled_from([0.1, 1.0, 4.0]),
    dies=LATER,
    unreachable=LATER,
)
FIRST = st.builds(
    Life, an_episode=st.sampled_from([0.1, 1.0, 4.0]), dies=st.floats(1.5, 60.0), unreachable=LATER
)


@settings(max_examples=400, deadline=None)
@given(
    first=st.lists(st.one_of(st.just(Life()), FIRST), min_size=4, max_size=4),
    others=st.lists(LIVES, min_size=8, max_size=8),
    workers=st.integers(1, 4),
    restarts=st.integers(0, 5),
    spared=st.integers(0, 3),
    episodes=st.integers(0, 15),
    more=st.integers(0, 2),
)
def test_whoever_dies_every_episode_comes_once_under_the_live_adapter_or_an_error_names_a_worker(
    first: list[Life],
    others: list[Life],
    workers: int,
    restarts: int,
    spared: int,
    episodes: int,
    more: int,
) -> None:
    fewest, most, error = max(1, workers - spared), workers + more, None
    try:
        with simulated([*first[:workers], *others], workers, restarts, fewest, most) as (world, pool, _):
            began, world.free = world.now, 1.0
            try:
                for version in (1, 2, 3):
                    swap(pool, version)
                    pool.grow()
                    assert versions(pool, episodes) == [version] * episodes
                    assert pool.restarts <= restarts
                    assert pool.workers >= fewest
            except (RolloutError, ClusterError) as raised:
                error = raised
            asked = [share for actor in world.actors for share in actor.shares]
            cut = [share for n in range(workers, most + 1) for share in shares_of(specs_of(episodes), n)]
            assert all(share in cut for share in asked), "cut anew: engines would round otherwise"
            assert pool.places <= most
            # Each step of a worker ends in time. There are six calls of the pool, and at most four steps to an answer.
            assert world.now - began <= 6 * (restarts + most) * (PLACING_S + 3 * TIMEOUT_S)
    except ClusterError as raised:  # by a first actor that dies while it starts
        error = raised
    assert error is None or "rollout worker " in str(error)


DIED = 3.5  # in the first share: it has started after 1 s, taken an adapter after 2 s, played one episode after 3 s
DIES = Life(dies=DIED)


def test_a_replacement_that_no_node_can_hold_ends_the_run_by_the_deadline_of_placing() -> None:
    with simulated([Life(), DIES, Life(placed=NEVER)], workers=2) as (world, pool, told):
        swap(pool, 1)
        with pytest.raises(ClusterError) as caught:
            versions(pool, 4)
        assert world.now == pytest.approx(DIED + PLACING_S)
    for part in (
        "rollout worker 1 (replacement) was not placed",
        "1 CPUs",
        "within 20 s",
        "0 of 2 CPUs on node a",
    ):
        assert part in str(caught.value)
    assert "rollout worker 1 (node 1) died" in told[0]
    assert told[1].startswith(
        "rollout worker 1 (replacement) waits for 1 CPUs on one node, at most 20 s. Free: 0 of 2"
    )
    assert len(told) == 2


def test_results_come_on_while_a_replacement_starts() -> None:
    lives = [Life(an_episode=2.0), DIES, Life(placed=15.0, start=10.0)]
    with simulated(lives, workers=2) as (world, pool, _):
        swap(pool, 1)
        came = {group[0].group: world.now for group in pool.stream(specs_of(8), SAMPLING)}
    assert came[0] == pytest.approx(2.0 + 4.0)
    assert came[1] == pytest.approx(2.0 + 8.0)
    assert came[3] == pytest.approx(DIED + 15.0 + 10.0 + 1.0 + 4.0)


def test_a_run_goes_on_with_fewer_and_the_worker_that_gets_a_node_joins_with_the_newest_adapter() -> None:
    late = Life(placed=60.0, start=10.0)
    with simulated([Life(), DIES, late], workers=2, min_workers=1) as (world, pool, told):
        swap(pool, 1)
        assert versions(pool, 8) == [1] * 8
        assert pool.workers == 1
        assert world.now == pytest.approx(DIED + PLACING_S + 4.0)
        assert world.actors[0].shares == [[0, 1, 2, 3], [4, 5, 6, 7]], "the shares are those of two workers"
        swap(pool, 2)
        assert world.actors[2].version == 0
        world.pass_time(60.0)
        for version in (3, 4):
            swap(pool, version)
            assert versions(pool, 8) == [version] * 8
        assert pool.workers == 2
        assert world.actors[2].shares
    assert told[-2].endswith("the run goes on with 1 of 2 workers until there is room.")
    assert told[-1] == "rollout worker 1 (replacement, node 1) joins the others once it has started."


def test_a_run_goes_on_without_a_worker_that_may_not_be_replaced() -> None:
    with simulated([Life(), DIES, Life()], workers=2, restarts=0, min_workers=1) as (world, pool, told):
        for version in (1, 2):
            swap(pool, version)
            assert versions(pool, 8) == [version] * 8
        assert (pool.workers, pool.restarts, len(world.actors)) == (1, 0, 2)
    assert told == [
        "rollout worker 1 (node 1) died: The actor died unexpectedly before finishing this task."
        " rollout.restarts=0 allows no other; the run goes on with 1 of 2 workers."
    ]


def test_the_last_worker_that_a_run_needs_cannot_be_spared() -> None:
    lives = [Life(dies=7.0), DIES]
    with simulated(lives, workers=2, restarts=0, min_workers=1) as (_, pool, _told):
        swap(pool, 1)
        with pytest.raises(
            RolloutError, match=r"worker 0 \(node 0\) died.*rollout\.restarts=0 allows no more"
        ):
            versions(pool, 20)


def test_all_replacements_are_placed_and_started_at_the_same_time() -> None:
    lives = [DIES, DIES, DIES, *(Life(placed=15.0, start=10.0) for _ in range(3))]
    with simulated(lives, workers=3) as (world, pool, _):
        swap(pool, 1)
        assert versions(pool, 12) == [1] * 12
        assert world.now == pytest.approx(DIED + 15.0 + 10.0 + 1.0 + 4.0)


def test_a_replacement_that_hangs_when_it_starts_is_named_while_others_play() -> None:
    lives = [Life(), DIES, Life(start=NEVER)]
    with simulated(lives, workers=2) as (world, pool, _):
        swap(pool, 1)
        with pytest.raises(
            DeadlineError, match=r"within 60 s from: rollout worker 1 \(replacement, node 1\)\."
        ):
            versions(pool, 8)
        assert world.now == pytest.approx(DIED + TIMEOUT_S)


def test_what_else_is_checked_ends_a_wait_within_a_second() -> None:
    def check() -> None:
        if world.now >= 10.0:
            raise LearnerError("learner rank 1 (node b) died")

    with simulated([Life(an_episode=30.0)], workers=1) as (world, pool, told):
        pool.attend(told.append, check)
        with pytest.raises(LearnerError, match="rank 1"):
            versions(pool, 1)
        assert world.now <= 11.0


def test_a_pool_with_a_missing_worker_begins_no_other_run() -> None:
    with simulated([Life(), DIES, Life(placed=NEVER)], workers=2, min_workers=1) as (_, pool, _told):
        swap(pool, 1)
        versions(pool, 8)
        with pytest.raises(RolloutError, match=r"rollout worker 1 \(replacement\) did not start again"):
            pool.begin(pool.cfg)


def test_a_caller_that_asks_a_worker_itself_may_ask_its_replacement_at_once() -> None:
    def play(actor: Any) -> Any:
        return actor.stream.options(num_returns="streaming").remote(specs_of(4), SAMPLING)

    with simulated([Life(), DIES, Life(placed=5.0, start=10.0)], workers=2) as (world, pool, _):
        swap(pool, 1)
        calls = {pool.ask(1, play): 1}
        deadlines = dict.fromkeys(calls, world.now + TIMEOUT_S)
        answers = [pool.next_answers(calls, deadlines)[1:] for _ in range(3)]
        begun, first, lost = [(len(values), over) for values, over in answers]
        assert (begun, first, lost) == ((1, False), (1, False), (0, True))
        assert (pool.lost, world.actors[2].version) == ([0, 1], 1)
        assert world.now == pytest.approx(DIED + 5.0 + 10.0 + 1.0)
        again = {pool.ask(1, play): 1}
        assert pool.next_answers(again, dict.fromkeys(again, world.now + 0.5))[1:] == ([[]], False)
        with pytest.raises(DeadlineError, match=r"from: rollout worker 1 \(node 1\)\."):
            pool.next_answers(again, dict.fromkeys(again, world.now + 0.5))


def test_workers_that_are_asked_one_after_another_are_late_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Actor._stream

    def slowly_asked(actor: Actor, *args: Any) -> Any:
        actor.ray.pass_time(0.01)
        return stream(actor, *args)

    monkeypatch.setattr(Actor, "_stream", slowly_asked)
    with simulated([Life(an_episode=NEVER)] * 3, workers=3) as (_, pool, _told):
        names = r"rollout worker 0 \(node 0\), rollout worker 1 \(node 1\), rollout worker 2 \(node 2\)\."
        with pytest.raises(DeadlineError, match=names):
            versions(pool, 6)
