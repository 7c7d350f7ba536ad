"""Workers that are added to a run that goes on: with room and without, and newcomers that never play."""

from __future__ import annotations

from typing import Any

import pytest

from rlpost.cluster import capacity
from rlpost.errors import SwapError
from rlpost.rollout.newcomers import MOST_FAILURES
from rlpost.rollout.pool import shares_of
from tests.unit.rollout.simulated_ray import NEVER, Actor, Life, Ref
from tests.unit.rollout.test_supervisor import PLACING_S, TIMEOUT_S, simulated, specs_of, swap, versions

LATE = Life(placed=1.0, start=5.0)


def shares(actors: list[Actor], batch: int) -> list[list[int]]:
    return [actor.shares[batch] for actor in actors]


def test_a_worker_joins_between_batches_and_is_told_and_gets_a_share() -> None:
    with simulated([Life(), Life(), LATE], workers=2, max_workers=3) as (world, pool, told):
        swap(pool, 1)
        world.free = 5.0
        pool.grow()
        assert (len(world.actors), world.groups) == (3, ["group 0"]), "no more than rollout.max_workers"
        began = world.now
        assert versions(pool, 24) == [1] * 24
        assert world.now == began + 12, "nobody waited for the newcomer"
        assert (pool.workers, told) == (2, []), "it was ready in the middle of the batch"
        swap(pool, 2)
        assert told == ["rollout worker 2 joins on node b, 10.0.0.2 (3 of at most 3)"]
        assert versions(pool, 24) == [2] * 24
    assert shares(world.actors[:2], 0) == shares_of(specs_of(24), 2)
    assert [actor.shares[-1] for actor in world.actors] == shares_of(specs_of(24), 3)
    assert len(world.actors[2].shares) == 1
    assert pool.restarts == 0


def test_workers_that_start_together_join_in_the_order_in_which_they_are_ready() -> None:
    lives = [Life(), Life(start=50.0), Life(start=2.0)]
    with simulated(lives, workers=1, max_workers=3) as (world, pool, told):
        swap(pool, 1)
        world.free = 2.0
        pool.grow()
        for version in (2, 3):
            assert versions(pool, 30) == [version - 1] * 30
            swap(pool, version)
            pool.grow()
        assert versions(pool, 30) == [3] * 30
        assert pool.ready == [0, 1]
        for version in (4, 5):
            swap(pool, version)
            assert versions(pool, 30) == [version] * 30
        assert pool.ready == [0, 1, 2]
        assert len(world.actors) == 3
    assert [actor.version for actor in world.actors] == [5] * 3
    assert [line.split(" on ")[0] for line in told] == ["rollout worker 1 joins", "rollout worker 2 joins"]
    assert [line.rpartition(" (")[2] for line in told] == ["2 of at most 3)", "3 of at most 3)"]


def test_one_that_starts_during_a_swap_takes_the_newer_adapter_before_it_plays() -> None:
    lives = [Life(swap=10.0), Life(start=15.0)]
    with simulated(lives, workers=1, max_workers=2) as (world, pool, _):
        swap(pool, 1)
        world.free = 1.0
        pool.grow()
        for version in (2, 3, 4):
            swap(pool, version)
            pool.grow()
            assert versions(pool, 4) == [version] * 4
        assert pool.places == 2
    assert world.actors[1].shares


def test_without_room_nothing_is_asked_and_no_time_passes() -> None:
    with simulated([Life()], workers=1, max_workers=4) as (world, pool, told):
        swap(pool, 1)
        world.free, began = 0.5, world.now
        for _ in range(3):
            pool.grow()
        assert (len(world.actors), world.groups, told, world.now) == (1, [], [], began)


def test_without_the_setting_nobody_looks_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated([Life()], workers=1) as (world, pool, _):
        swap(pool, 1)
        monkeypatch.setattr(capacity, "nodes", lambda: pytest.fail("looked"))
        pool.grow()
        assert versions(pool, 4) == [1] * 4
        assert (len(world.actors), pool.places) == (1, 1)


def test_while_one_has_no_node_no_other_is_added() -> None:
    with simulated([Life(), Life(placed=NEVER), Life()], workers=1, max_workers=3) as (world, pool, told):
        swap(pool, 1)
        world.free = 1.0
        for _ in range(3):
            pool.grow()
        assert len(world.actors) == 2, "what is free may be what the first one is about to take"
        assert versions(pool, 30) == [1] * 30
        assert told == [
            "a new rollout worker did not start, and the run goes on without it: No answer within 20 s from: a new"
            " rollout worker. Free now: 0 of 2 CPUs on node a, 10.0.0.1."
        ]
        assert (world.actors[1].killed, world.removed) == (True, ["group 0"])
        pool.grow()
        assert len(world.actors) == 3, "another run took the room, so it is tried again"


@pytest.mark.parametrize(
    ("life", "why"),
    [
        (
            Life(start=9.0, dies=4.0),
            "a new rollout worker (node b, 10.0.0.2) died: The actor died unexpectedly",
        ),
        (Life(dies=1.5), "a new rollout worker (node b, 10.0.0.2) died"),  # while it takes the adapter
        (Life(start=NEVER), "No answer within 60 s from: a new rollout worker (node b, 10.0.0.2)."),
    ],
)
def test_a_newcomer_that_does_not_start_costs_a_line(life: Life, why: str) -> None:
    with simulated([Life(), life], workers=1, restarts=0, max_workers=2) as (world, pool, told):
        swap(pool, 1)
        world.free = 1.0
        pool.grow()
        world.free, began = 0.0, world.now
        for _ in range(2):
            assert versions(pool, 40) == [1] * 40
        assert world.now == began + 80
        swap(pool, 2)
        pool.grow()
        assert (pool.workers, pool.places, pool.restarts) == (1, 1, 0)
        assert (world.actors[1].killed, world.removed) == (True, ["group 0"])
        (line,) = told
        assert line.startswith(
            "a new rollout worker (node b, 10.0.0.2) did not start, and the run goes on without it"
        )
        assert why in line


def test_a_newcomer_that_refuses_the_adapter_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated([Life(), Life()], workers=1, max_workers=2) as (world, pool, told):
        swap(pool, 1)
        world.free = 1.0
        pool.grow()

        def refuse(adapter: Any, canary: Any) -> Ref:
            return Ref(world.now, SwapError("the canary is off"))

        monkeypatch.setattr(world.actors[1], "_swap", refuse)
        assert versions(pool, 8) == [1] * 8
        swap(pool, 2)
        assert (pool.workers, world.actors[1].killed) == (1, True)
    assert told == [
        "a new rollout worker (node b, 10.0.0.2) did not start, and the run goes on without it: the canary is off"
    ]


def test_after_some_failures_in_a_row_no_other_is_tried() -> None:
    with simulated([Life(), *[Life(start=NEVER)] * 9], workers=1, max_workers=2) as (world, pool, told):
        swap(pool, 1)
        world.free = 1.0
        for _ in range(6):
            pool.grow()
            world.pass_time(TIMEOUT_S + PLACING_S)
            pool.grow()
        assert len(world.actors) == 1 + MOST_FAILURES
        assert len(told) == MOST_FAILURES
        assert told[-1].endswith("It is number 3 in a row; no other is tried.")
        assert not any("in a row" in line for line in told[:-1])
        assert world.removed == world.groups


def test_an_added_worker_that_is_lost_is_replaced_on_its_bundle_and_can_be_spared_afterwards() -> None:
    lives = [Life(), Life(dies=6.0), Life(dies=5.0)]
    with simulated(lives, workers=1, restarts=1, max_workers=2) as (world, pool, told):
        swap(pool, 1)
        world.free = 1.0
        pool.grow()
        assert versions(pool, 4) == [1] * 4
        for version in range(2, 6):
            swap(pool, version)
            pool.grow()
            assert versions(pool, 8) == [version] * 8
        assert (pool.restarts, pool.workers, pool.places) == (1, 1, 2)
        assert (world.groups, world.removed) == (["group 0"], [])
        assert len(world.actors) == 3, "a place whose worker is not replaced is not filled anew"
        cut = [*shares_of(specs_of(4), 1), *shares_of(specs_of(8), 2)]
        assert all(share in cut for actor in world.actors for share in actor.shares)
    assert "rollout worker 1 (node b, 10.0.0.2) died" in told[1]
    assert told[-1].endswith("the run goes on with 1 of 2 workers.")


def test_a_run_that_ends_ends_the_newcomers_too() -> None:
    with simulated([Life(), Life(start=NEVER)], workers=1, max_workers=2) as (world, pool, _):
        swap(pool, 1)
        world.free = 1.0
        pool.grow()
        pool.close()
        assert [actor.killed for actor in world.actors] == [True, True]
        pool.placement.close()
        assert world.removed == ["group 0"]
