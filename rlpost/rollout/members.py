"""The places of the rollout workers: which actor has each, and what becomes of a place whose actor is lost.

An actor that is lost is fenced (killed, and known to be dead), and another takes its place while rollout.restarts are
left. A place is missing if it may have no other actor, or if no node has room for the one it has. The run goes on with
missing places while rollout.min_workers others are left. Places are added while it goes on (rollout.max_workers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from rlpost.cluster import capacity
from rlpost.cluster.actor_calls import ActorLostError, Asked, fence
from rlpost.cluster.placement import Placement
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, RolloutError
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter

Ask = Callable[[Any], Asked]  # asks an actor; gives the pending answer
Live = tuple[Adapter, Canary]


class Member:
    """A place, and the actor that has it. `start` asks an actor to start."""

    def __init__(self, number: int, actor: Any, start: Ask) -> None:
        self.number, self.replaced = number, 0
        self.gone = False  # lost, and not replaced
        self.take(actor, start)

    def take(self, actor: Any, start: Ask) -> None:
        """Put a new actor in the place, and ask it to start. It answers `placing` before, once it has a process."""
        self.actor = actor
        self.placing: Asked = actor.__ray_ready__.remote()
        self.starting: Asked = start(actor)
        self.placed = self.started = False
        self.node: str | None = None  # once it is placed, on a joined cluster
        self.has: Live | None = None  # the adapter that it serves; None: the bare base
        self.told = False  # the user knows that it waits for a node
        self.homeless = False  # no node had room for it in time

    @property
    def missing(self) -> bool:
        """Whether the others go on without it."""
        return self.gone or self.homeless

    @property
    def name(self) -> str:
        """As messages name it, such as `rollout worker 1 (replacement, node b, 10.0.0.2)` until that has started."""
        starts = self.replaced and not self.started
        known = [*(["replacement"] if starts else []), *([self.node] if self.node else [])]
        return f"rollout worker {self.number}" + (f" ({', '.join(known)})" if known else "")


class Members:
    """Creates an actor by `spawn`, from Ray's options, for each of `cfg.rollout.workers` places; asks it to start.

    `restarts` counts replaced actors. `tell` shows a line to the user.
    """

    def __init__(
        self, cfg: Config, placement: Placement, spawn: Callable[[dict[str, Any]], Any], start: Ask
    ) -> None:
        self.cfg, self._placement, self._spawn, self._start = cfg, placement, spawn, start
        self.all = [Member(number, self._actor(number), start) for number in range(cfg.rollout.workers)]
        self.restarts = 0
        self.tell: Callable[[str], None] = lambda line: None

    @property
    def present(self) -> list[Member]:
        return [member for member in self.all if not member.missing]

    @property
    def needs(self) -> str:
        """What each needs on one node."""
        return capacity.amount(self._placement.plan.workers[0])

    def begin(self, cfg: Config) -> None:
        """Begin another run with the same actors. Raises RolloutError if one is missing."""
        if away := [member.name for member in self.all if not member.started]:
            raise RolloutError(f"{', '.join(away)} did not start again")
        self.cfg, self.restarts = cfg, 0
        for member in self.all:
            member.has = None

    def join(self, member: Member, reserved: Placement) -> None:
        """Give the next number to another member, which has started on its `reserved` bundle."""
        member.number = len(self.all)
        self._placement.add(reserved)
        self.all.append(member)
        where, most = f" on {member.node}" if member.node else "", self.cfg.rollout.max_workers
        self.tell(f"rollout worker {member.number} joins{where} ({len(self.present)} of at most {most})")

    def lost(self, member: Member, reason: ActorLostError) -> None:
        """The member's actor is lost. Raises RolloutError if it can neither be replaced nor spared."""
        limit = self.cfg.rollout.restarts
        if self.restarts < limit:
            fence(member.actor, member.name)
            self.restarts += 1
            self.tell(f"{reason} Another takes its place ({self.restarts} of rollout.restarts={limit}).")
            member.take(self._actor(member.number), self._start)
            member.replaced += 1
        elif self._can_spare(member):
            fence(member.actor, member.name)
            member.gone = True
            self.tell(f"{reason} rollout.restarts={limit} allows no other; {self._goes_on()}.")
        else:
            raise RolloutError(
                f"{reason} That is worker number {limit + 1} to be lost; rollout.restarts={limit} allows no more. Its"
                " last words are in the Ray logs; out of memory is the usual reason (rollout.kv_cache_gib,"
                " rollout.max_num_seqs)."
            ) from reason

    def renew(self, member: Member) -> None:
        """Put a new actor in the member's place, which is no loss. Raises ClusterError if the old one does not end."""
        fence(member.actor, member.name)
        member.take(self._actor(member.number), self._start)

    def homeless(self, member: Member) -> None:
        """No node had room for the member in time. Raises ClusterError if it cannot be spared."""
        where = f"{self.needs} on one node within {self.cfg.ray.timeout_s:g} s"
        if not self._can_spare(member):
            raise ClusterError(
                f"{member.name} was not placed: it needs {where} (ray.timeout_s). Free now: {capacity.summary()}."
                "\n  remedy: resume the run (resume=) when the cluster has room again, or let it go on with fewer"
                " workers (rollout.min_workers)"
            )
        member.homeless = True
        self.tell(f"{member.name} was not placed: it needs {where}; {self._goes_on()} until there is room.")

    def placed(self, member: Member) -> None:
        """The member's actor has a process."""
        self._placement.locate()  # a bundle moves if its node is lost
        member.placed, member.node = True, self._placement.node_of_worker(member.number)
        if member.homeless:
            member.homeless = False
            self.tell(f"{member.name} joins the others once it has started.")

    def waits(self, member: Member) -> None:
        """Tell, once, what a member waits for that has no node yet."""
        if not member.told:
            member.told = True
            at_most = f"at most {self.cfg.ray.timeout_s:g} s"
            self.tell(
                f"{member.name} waits for {self.needs} on one node, {at_most}. Free: {capacity.summary()}."
            )

    def close(self) -> None:
        """End the process of every actor."""
        for member in self.all:
            ray.kill(member.actor)
        self.all = []

    def _actor(self, number: int) -> Any:
        """An actor for a place, on the place's bundle, which its predecessor had."""
        return self._spawn(self._placement.worker(number))

    def _can_spare(self, member: Member) -> bool:
        rollout = self.cfg.rollout
        fewest = rollout.workers if rollout.min_workers is None else rollout.min_workers
        return sum(other is not member for other in self.present) >= fewest

    def _goes_on(self) -> str:
        return f"the run goes on with {len(self.present)} of {len(self.all)} workers"
