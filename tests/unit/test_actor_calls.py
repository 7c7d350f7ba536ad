"""Fences, heartbeats and the messages of missed deadlines, on a simulated Ray. With a real one: test_cluster.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import ray

from rlpost.cluster.actor_calls import FENCE_S, ActorLostError, Heartbeats, Wait, fence, late
from rlpost.errors import ClusterError, LearnerError
from rlpost.learner.group import LearnerGroup
from tests.unit.rollout.simulated_ray import NEVER, Life, SimulatedRay

World = Callable[[Sequence[Life]], SimulatedRay]


@pytest.fixture
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield lambda lives: SimulatedRay(patch, lives)


class TestFence:
    def test_an_actor_that_cannot_be_reached_is_dead_afterwards(self, world: World) -> None:
        simulated = world([Life(unreachable=0.0)])
        actor = simulated.spawn()
        fence(actor, "worker 1")
        assert actor.killed
        assert simulated.now < 1.0

    def test_ray_may_confirm_the_death_later(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        simulated = world([Life(unreachable=0.0, dies=3.0)])
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        fence(simulated.spawn(), "worker 1")
        assert 3.0 <= simulated.now < 3.5

    @pytest.mark.parametrize("life", [Life(), Life(unreachable=0.0), Life(placed=NEVER)])
    def test_an_actor_that_survives_is_an_error_that_names_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch, life: Life
    ) -> None:
        simulated = world([life])
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        with pytest.raises(ClusterError, match=r"worker 1 was killed, but Ray does not say within 10 s"):
            fence(simulated.spawn(), "worker 1")
        assert simulated.now == pytest.approx(FENCE_S, abs=0.2)


def check_until(second: float, beats: Heartbeats, simulated: SimulatedRay) -> None:
    """Check twice a second, as a wait that is often answered does."""
    while simulated.now < second:
        beats.check()
        simulated.pass_time(0.5)


class TestHeartbeats:
    def test_a_death_is_found_at_the_next_check_after_a_second(self, world: World) -> None:
        simulated = world([Life(), Life(dies=5.0)])
        beats = Heartbeats({"rank 0": simulated.spawn(), "rank 1": simulated.spawn()})
        check_until(5.0, beats, simulated)
        with pytest.raises(ActorLostError, match="rank 1 died"):
            check_until(10.0, beats, simulated)
        assert simulated.now <= 6.5

    def test_a_busy_actor_is_asked_once_and_its_death_is_found(self, world: World) -> None:
        simulated = world([Life(start=100.0, dies=50.0)])
        actor = simulated.spawn()
        actor.start.remote()
        beats, asked = Heartbeats({"rank 0": actor}), list[Any]()
        does = actor._does
        actor._does = lambda *args: asked.append(args) or does(*args)  # type: ignore[method-assign,func-returns-value]
        with pytest.raises(ActorLostError, match="rank 0 died"):
            check_until(60.0, beats, simulated)
        assert 50.0 <= simulated.now <= 51.0
        assert len(asked) == 1

    def test_a_check_takes_no_time_and_nobody_is_no_error(self, world: World) -> None:
        simulated = world([Life(placed=NEVER)])
        Heartbeats({"rank 0": simulated.spawn()}).check()
        Heartbeats({}).check()
        assert simulated.now == 0.0


def test_a_lost_rank_breaks_the_group_and_a_closed_one_checks_nobody(world: World) -> None:
    simulated = world([Life(dies=1.0)])
    group, rank = LearnerGroup.__new__(LearnerGroup), simulated.spawn()
    group.workers, group.broken = [rank], None
    group._heartbeats = Heartbeats({"learner rank 0 (node b)": rank})
    group.check()
    simulated.pass_time(2.0)
    with pytest.raises(LearnerError, match=r"learner rank 0 \(node b\) died"):
        group.check()
    with pytest.raises(LearnerError, match=r"takes no calls any more: learner rank 0 \(node b\) died"):
        group.set_reference()
    group.check()
    group.broken, group.workers = None, []
    group.check()


def test_a_missed_deadline_names_all_that_are_silent_each_with_its_own_seconds(world: World) -> None:
    world([])
    error = late([Wait("a", 5.0, 0.0), Wait("b", 60.0, 0.0), Wait("c", 5.0, 0.0)])
    assert str(error) == (
        "No answer within 5 s from: a, c. No answer within 60 s from: b. Free now: 0 of 2 CPUs on node a, 10.0.0.1."
    )
