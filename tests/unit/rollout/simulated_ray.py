"""Ray on a clock of its own: actors that are placed, start, play and die at the seconds that a test chooses.

A test that waits for minutes of this clock takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import exceptions as ray_errors

from rlpost.cluster import actor_calls, capacity, placement
from rlpost.cluster.capacity import Node
from rlpost.cluster.ray_cluster import Needs
from rlpost.rollout import supervisor
from rlpost.rollout.engine.protocol import Sampling, SwapReport
from rlpost.types import EpisodeSpec
from tests.unit.episodes import episode, turn

NEVER = math.inf


@dataclass(frozen=True)
class Life:
    """What becomes of an actor, in seconds. `dies` and `unreachable` count from its first moment on its node."""

    placed: float = 0.0  # after it was created
    start: float = 1.0
    swap: float = 1.0
    sleep: float = 1.0
    an_episode: float = 1.0
    dies: float = NEVER
    unreachable: float = NEVER  # then its calls fail, though its process goes on until it is killed


@dataclass(eq=False)
class Ref:
    """An answer that comes at a second of the clock: a value, or an error to be raised."""

    at: float
    outcome: Any


class Stream:
    """What an actor yields, and when; then it ends. It begins with the first."""

    def __init__(self, yields: Sequence[Ref], ends: float) -> None:
        self._yields, self._begins, self._ends = list(yields), yields[0].at, ends
        self.cancelled = False

    @property
    def at(self) -> float:
        return self._yields[0].at if self._yields else self._ends

    def __next__(self) -> Ref:
        if not self._yields:
            raise StopIteration
        ref = self._yields.pop(0)
        if isinstance(ref.outcome, Exception):
            self._yields, self._ends = [], ref.at
        return ref

    def cancel(self, now: float) -> None:
        assert self._begins <= now, "Ray may lose the place of a call that is cancelled before it begins"
        self.cancelled = True


@dataclass(eq=False)
class Actor:
    """Answers one call after another, as its life allows."""

    ray: SimulatedRay
    life: Life
    created: float
    version: int = 0
    killed: bool = False
    asleep: bool = False
    calls: list[str] = field(default_factory=list)  # what it was asked once it had started
    shares: list[list[int]] = field(default_factory=list)  # the episodes that it was asked to play
    free: float = 0.0

    def __post_init__(self) -> None:
        self.free = self.created + self.life.placed
        self._dies, self._lost = self.free + self.life.dies, self.free + self.life.unreachable

    @property
    def alive(self) -> bool:
        """Whether its process may still compute."""
        return not self.killed and self.ray.now < self._dies

    def _does(self, seconds: float, value: Any) -> Ref:
        begun = max(self.ray.now, self.free)
        self.free = begun + seconds
        if self.killed or self.ray.now >= self._dies:
            return Ref(self.ray.now, ray_errors.ActorDiedError())
        if (ends := min(self._dies, self._lost)) < self.free:
            died = self._dies <= self._lost
            lost = ray_errors.ActorDiedError() if died else ray_errors.ActorUnavailableError("no link", None)
            return Ref(max(self.ray.now, ends), lost)
        return Ref(self.free, value)

    def _stream(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> Stream:
        self._asked("stream")
        self.shares.append([spec.episode for spec in specs])
        refs = [self._does(0.0, [])]
        for k, spec in enumerate(specs):
            played = episode(replace(turn(), policy_version=self.version), index=spec.episode)
            refs.append(self._does(self.life.an_episode, [(k, replace(played, group=spec.group))]))
            if isinstance(refs[-1].outcome, Exception):
                break
        return Stream(refs, self.free)

    def _swap(self, adapter: Any, canary: Any) -> Ref:
        self._asked("swap")
        self.version = adapter.version
        return self._does(self.life.swap, SwapReport(adapter.version, "", 1, 1, 0.0, 0.0, 0.0))

    def _turn(self, name: str) -> Ref:
        self.calls.append(name)
        self.asleep = name == "sleep"
        return self._does(self.life.sleep, None)

    def _asked(self, name: str) -> None:
        assert not self.asleep, f"{name} was asked of an engine that sleeps"
        self.calls.append(name)

    def _begin(self, *_: Any) -> Ref:
        self._asked("begin")
        return self._does(0.0, None)

    def __getattr__(self, method: str) -> Any:
        calls: dict[str, Callable[..., Any]] = {
            "__ray_ready__": lambda: self._does(0.0, True),
            "start": lambda *args: self._does(self.life.start, None),
            "swap": self._swap,
            "sleep": lambda: self._turn("sleep"),
            "wake": lambda: self._turn("wake"),
            "begin": self._begin,
        }
        if method == "stream":
            return SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._stream))
        if method not in calls:
            raise AttributeError(method)
        return SimpleNamespace(remote=calls[method])


def node(name: str, free: float) -> Node:
    return Node(name, name, f"10.0.0.{ord(name) - 96}", Needs(9, 0), Needs(free, 0))


class SimulatedRay:
    """In place of Ray's functions. `lives` are those of the actors, in the order in which they are created."""

    def __init__(self, patch: pytest.MonkeyPatch, lives: Iterable[Life]) -> None:
        self.now, self.actors = 0.0, list[Actor]()
        self._lives = iter(lives)
        for name, stand_in in (("wait", self._wait), ("get", self._get), ("put", lambda value: value)):
            patch.setattr(ray, name, stand_in)
        patch.setattr(ray, "kill", lambda actor: setattr(actor, "killed", True))
        patch.setattr(ray, "cancel", lambda stream: stream.cancel(self.now))
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(ray, "ObjectRefGenerator", Stream)
        patch.setattr(capacity, "summary", lambda: "0 of 2 CPUs on node a, 10.0.0.1")
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.pass_time)
        for module in (actor_calls, supervisor):
            patch.setattr(module, "time", clock)
        self.free = 0.0  # CPUs of node b, on which workers may be added
        self.groups, self.removed = list[str](), list[str]()
        patch.setattr(capacity, "nodes", lambda: [node("a", 0.0), node("b", self.free)])
        patch.setattr(placement, "placement_group", self._reserve)
        patch.setattr(placement, "remove_placement_group", self.removed.append)
        patch.setattr(placement, "placement_group_table", lambda group: {"bundles_to_node_id": {0: "b"}})

    def spawn(self) -> Actor:
        self.actors.append(Actor(self, next(self._lives, Life()), self.now))
        return self.actors[-1]

    def _reserve(self, bundles: list[dict[str, float]], strategy: str) -> str:
        assert bundles == [{"CPU": 1.0}]
        self.groups.append(f"group {len(self.groups)}")
        return self.groups[-1]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def _wait(
        self, refs: Sequence[Ref | Stream], num_returns: int, timeout: float
    ) -> tuple[list[Ref | Stream], list[Ref | Stream]]:
        first = min(refs, key=lambda ref: ref.at)
        if first.at > self.now:
            self.now = min(first.at, self.now + timeout)
        ready = [ref for ref in refs if ref.at <= self.now][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def _get(self, ref: Ref, timeout: float) -> Any:
        if ref.at > self.now + timeout:
            self.now += timeout
            raise ray_errors.GetTimeoutError("late")
        self.now = max(self.now, ref.at)
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome
