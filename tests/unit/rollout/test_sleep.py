"""Engines that sleep while the learner works (rollout.sleep): vLLM's calls, and the pool's on a simulated Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlpost.errors import RolloutError
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.worker import RolloutActor
from tests.unit.rollout.simulated_ray import Life, SimulatedRay
from tests.unit.rollout.test_supervisor import simulated, swap, versions

# --- the engine


class Vllm:
    """Of vLLM's LLMEngine, what concerns its sleep."""

    def __init__(self, whole: bool = True, fails: bool = False) -> None:
        self.calls: list[str] = []
        self._asleep, self._whole, self._fails = False, whole, fails

    def sleep(self, level: int) -> None:
        self._call(f"sleep {level}")
        self._asleep = True

    def wake_up(self) -> bool:
        self._call("wake_up")
        self._asleep = False
        return self._whole

    def is_sleeping(self) -> bool:
        return self._asleep

    def fail(self) -> None:
        self._fails = True

    def _call(self, name: str) -> None:
        if self._fails:
            raise RuntimeError("CUDA Error: out of memory")
        self.calls.append(name)


def engine_on(vllm: Vllm) -> VllmEngine:
    engine = VllmEngine.__new__(VllmEngine)
    engine._engine, engine._waiting, engine._finished = vllm, set(), []
    return engine


def test_an_engine_sleeps_at_the_level_that_keeps_its_weights() -> None:
    vllm = Vllm()
    actor = RolloutActor()
    actor._engine = engine_on(vllm)
    actor.sleep()
    actor.wake()
    assert vllm.calls == ["sleep 1", "wake_up"]


def test_an_engine_that_is_awake_stays_so() -> None:
    vllm = Vllm()
    engine_on(vllm).wake()
    assert vllm.calls == []


@pytest.mark.parametrize("live", ["_waiting", "_finished"])
def test_an_engine_with_requests_does_not_sleep(live: str) -> None:
    """vLLM would abort them without a word."""
    vllm = Vllm()
    engine = engine_on(vllm)
    setattr(engine, live, ["a request"])
    with pytest.raises(RolloutError, match="Requests are live"):
        engine.sleep()
    assert vllm.calls == []


def test_what_vllm_cannot_do_names_the_setting() -> None:
    with pytest.raises(RolloutError, match=r"could not free .*rollout\.sleep.*out of memory"):
        engine_on(Vllm(fails=True)).sleep()
    vllm = Vllm()
    engine = engine_on(vllm)
    engine.sleep()
    vllm.fail()
    with pytest.raises(RolloutError, match=r"out of memory\n  remedy: lower rollout\.gpu_memory_utilization"):
        engine.wake()


def test_an_engine_that_wakes_in_part_is_an_error() -> None:
    engine = engine_on(Vllm(whole=False))
    engine.sleep()
    with pytest.raises(RolloutError, match="woke in part"):
        engine.wake()


# --- the pool


def calls(world: SimulatedRay) -> list[list[str]]:
    return [actor.calls for actor in world.actors]


def sleeping(lives: Sequence[Life], workers: int) -> Any:
    return simulated(lives, workers, sleep=True)


@pytest.mark.parametrize("use", ["swap", "collect", "begin"])
def test_whatever_is_asked_of_a_sleeping_pool_wakes_every_engine_first(use: str) -> None:
    uses = {
        "swap": lambda pool: swap(pool, 1),
        "collect": lambda pool: versions(pool, 4),
        "begin": lambda pool: pool.begin(pool.cfg),
    }
    with sleeping([], workers=2) as (world, pool, _):
        pool.sleep()
        assert [actor.asleep for actor in world.actors] == [True, True]
        uses[use](pool)
        asked = {"swap": "swap", "collect": "stream", "begin": "begin"}[use]
        assert calls(world) == [["sleep", "wake", asked]] * 2


def test_an_iteration_asks_each_engine_once_to_sleep_and_once_to_wake() -> None:
    with sleeping([], workers=1) as (world, pool, _):
        swap(pool, 1)
        assert versions(pool, 2) == [1, 1]
        for _ in range(2):  # a supervised step asks each time
            pool.sleep()
        pool.wake()
        swap(pool, 2)
        assert versions(pool, 2) == [2, 2]
        assert calls(world) == [["swap", "stream", "sleep", "wake", "swap", "stream"]]


def test_without_the_setting_no_engine_is_asked_to_sleep() -> None:
    with simulated([], workers=2) as (world, pool, _):
        pool.sleep()
        pool.wake()
        assert calls(world) == [[], []]


def test_a_worker_that_dies_in_its_sleep_has_a_successor_that_is_awake() -> None:
    lives = [Life(dies=30.0), Life(), Life()]
    with sleeping(lives, workers=2) as (world, pool, told):
        swap(pool, 1)
        pool.sleep()
        world.pass_time(60.0)  # the learner's update
        assert versions(pool, 4) == [1] * 4
        assert pool.restarts == 1
        assert "rollout worker 0" in told[0]
        assert calls(world) == [
            ["swap", "sleep", "wake"],
            ["swap", "sleep", "wake", "stream"],
            ["swap", "wake", "stream"],
        ]


def test_the_successor_of_a_worker_that_dies_as_it_goes_to_sleep_sleeps_too() -> None:
    with sleeping([Life(dies=1.5), Life()], workers=1) as (world, pool, _):
        pool.sleep()
        assert [actor.asleep for actor in world.actors if actor.alive] == [True]
        assert versions(pool, 2) == [0, 0]


def test_a_refused_swap_leaves_an_awake_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    with sleeping([], workers=1) as (world, pool, _):
        pool.sleep()
        monkeypatch.setattr(RolloutPool, "_refusals", lambda *_: ["no"])
        with pytest.raises(Exception, match="did not take"):
            swap(pool, 1)
        assert not world.actors[0].asleep
