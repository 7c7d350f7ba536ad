"""Workers that start while the run goes on without them (rollout.max_workers).

    a node has room ─▶ placed ─▶ started ─▶ given the live adapter ─▶ ready: it joins the others between two batches
                         └ dies, refuses or is late: given up with a line, since the run does not need it

Nothing here waits. Whoever waits for something else looks now and then, and so does the run between its iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from rlpost.cluster import capacity
from rlpost.cluster.actor_calls import Asked, Wait, late, take
from rlpost.cluster.placement import Placement
from rlpost.config.schema import Config
from rlpost.errors import RlpostError
from rlpost.rollout.members import Ask, Live, Member

# Newcomers in a row that got a node and did not start; then no other is tried. A node may lack the model, for instance.
MOST_FAILURES = 3


@dataclass(eq=False)
class Newcomer:
    """A worker that starts: its bundle, and the call whose answer it owes, if it owes one."""

    member: Member
    reserved: Placement
    pending: tuple[Asked, Wait] | None = None
    offered: Live | None = None  # the adapter that it was last asked to take

    @property
    def name(self) -> str:
        return "a new rollout worker" + (f" ({self.member.node})" if self.member.node else "")

    def serves(self, live: Live | None) -> bool:
        """Whether it has started and serves the live adapter (None: the bare base)."""
        return self.member.started and self.pending is None and self.member.has is live

    def heard(self) -> None:
        """The pending call has succeeded."""
        self.pending = None
        if not self.member.placed:
            self.reserved.locate()
            self.member.placed, self.member.node = True, self.reserved.node_of_worker(0)
        elif not self.member.started:
            self.member.started = True
        else:
            self.member.has = self.offered

    def ask(self, live: Live | None, cfg: Config) -> None:
        """Begin the next step, if there is one."""
        member, seconds = self.member, cfg.rollout.timeout_s
        if not member.placed:
            asked, seconds = member.placing, cfg.ray.timeout_s
        elif not member.started:
            asked = member.starting
        elif live is not None and member.has is not live:
            self.offered, asked = live, member.actor.swap.remote(*live)
        else:
            return
        self.pending = asked, Wait.beginning(self.name, seconds)


class Newcomers:
    """Those that start. `spawn` creates an actor by Ray's options, `start` asks it to start; `tell` shows a line."""

    def __init__(
        self, cfg: Config, placement: Placement, spawn: Callable[[dict[str, Any]], Any], start: Ask
    ) -> None:
        self._cfg, self._placement, self._spawn, self._start = cfg, placement, spawn, start
        self._all: list[Newcomer] = []
        self._failures = 0
        self.tell: Callable[[str], None] = lambda line: None

    def add(self, most: int) -> None:
        """Begin to start more workers, up to `most`, if nodes have room for them now.

        While one has no node yet, none is added: what Ray says is free may be what that one is about to take.
        """
        wanted = most - len(self._all)
        placed = all(newcomer.member.placed for newcomer in self._all)
        if wanted <= 0 or not placed or self._failures >= MOST_FAILURES:
            return
        for _ in range(capacity.room_for(self._placement.plan.workers[0], wanted)):
            reserved = self._placement.reserve_worker()
            # It gets its number when it joins.
            member = Member(-1, self._spawn(reserved.worker(0)), self._start)
            self._all.append(Newcomer(member, reserved))

    def look(self, live: Live | None) -> None:
        """Take what has been answered, and ask for the next steps. Gives up those that fail or are late."""
        for newcomer in [*self._all]:
            try:
                self._advance(newcomer, live)
            except Exception as error:  # whatever it is, the run goes on without this worker
                self._give_up(newcomer, error)

    def ready(self, live: Live | None) -> list[Newcomer]:
        """Those that serve the live adapter. They are the caller's from now on."""
        ready = [newcomer for newcomer in self._all if newcomer.serves(live)]
        self._all = [newcomer for newcomer in self._all if newcomer not in ready]
        if ready:
            self._failures = 0
        return ready

    def close(self) -> None:
        """End their processes."""
        for newcomer in self._all:
            ray.kill(newcomer.member.actor)
        self._all = []

    def _advance(self, newcomer: Newcomer, live: Live | None) -> None:
        """Go on as far as its answers allow. Raises what it raises, and DeadlineError."""
        while True:
            if newcomer.pending is None:
                newcomer.ask(live, self._cfg)
            if newcomer.pending is None:
                return
            asked, wait = newcomer.pending
            if not ray.wait([asked], num_returns=1, timeout=0.0)[0]:
                if wait.over:
                    raise late([wait])
                return
            take(asked, wait.who)
            newcomer.heard()

    def _give_up(self, newcomer: Newcomer, error: Exception) -> None:
        self._all.remove(newcomer)
        ray.kill(newcomer.member.actor)
        self._placement.release(newcomer.reserved)
        self._failures += newcomer.member.placed  # without a node: another run took the room
        told = str(error) if isinstance(error, RlpostError) else str(error).strip().rpartition("\n")[2]
        enough = f" It is number {MOST_FAILURES} in a row; no other is tried."
        self.tell(
            f"{newcomer.name} did not start, and the run goes on without it: {told}"
            f"{enough if self._failures >= MOST_FAILURES else ''}"
        )
