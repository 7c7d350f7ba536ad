"""Has questions answered by the rollout workers, whatever becomes of these meanwhile.

    placed ─▶ started ─▶ given the live adapter ─▶ idle ─▶ answers a question ─▶ idle ─▶ ...
      ▲                                                     │ its process dies, its node is lost, Ray cannot reach it
      └───────── a new actor in its place (rlpost.rollout.members) ◀──┘

One loop waits for whatever comes next from any worker, so a replacement that starts holds up nobody. Each step has its
own deadline: ray.timeout_s to be placed on a node, rollout.timeout_s for the others. Workers that are added start
beside it (rlpost.rollout.newcomers), and join when the caller says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from rlpost.cluster.actor_calls import (
    ActorLostError,
    Asked,
    DeadlineError,
    Wait,
    cancel,
    first_answered,
    get_all,
    late,
    take,
)
from rlpost.cluster.placement import Placement
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, RlpostError
from rlpost.rollout.members import Ask, Live, Member, Members
from rlpost.rollout.newcomers import Newcomers

NOTICE_S = 5.0  # how long a worker waits for a node before the user is told


class Step(Enum):
    """What a worker was asked to do."""

    be_placed = auto()
    start = auto()
    take_adapter = auto()
    answer = auto()


@dataclass
class Call:
    """A pending call of a worker. `question` is the number of the one that it answers, if it does.

    `begun`: whether an answer was taken.
    """

    member: Member
    step: Step
    wait: Wait
    question: int | None
    begun: bool = False


class Supervisor:
    """Starts and supervises `cfg.rollout.workers` workers, and more if it is told to `grow`.

    See `Members` for `spawn` and `start`.

    `live` is the adapter that a worker is given before it is asked anything. `check` is called at least once a second
    during waits; what it raises ends them.
    """

    def __init__(
        self, cfg: Config, placement: Placement, spawn: Callable[[dict[str, Any]], Any], start: Ask
    ) -> None:
        self.cfg = cfg
        self.members = Members(cfg, placement, spawn, start)
        self.newcomers = Newcomers(cfg, placement, spawn, start)
        self.live: Live | None = None
        self.check: Callable[[], None] = lambda: None
        self._calls = dict[Asked, Call]()

    def wait_ready(self) -> None:
        """Wait for all workers to start. A death is an error then, since it costs no work.

        Raises ClusterError, or what a worker raises.
        """
        members = self.members.all
        try:
            self._all([member.placing for member in members], self.cfg.ray.timeout_s)
        except DeadlineError as error:
            raise ClusterError(f"{error} Each worker needs {self.members.needs} on one node.") from error
        for member in members:
            self.members.placed(member)
        self._all([member.starting for member in members], self.cfg.rollout.timeout_s)
        for member in members:
            member.started = True

    def begin(self, cfg: Config, ask: Ask) -> None:
        """Begin another run, with all workers at the bare base. If this raises, they must be closed.

        Raises what a worker raises, ClusterError, and RolloutError if one is missing.
        """
        self.members.begin(cfg)
        self.cfg, self.live = cfg, None
        self._all([ask(member.actor) for member in self.members.all], cfg.rollout.timeout_s)

    def serve(self, live: Live, have: Iterable[int]) -> None:
        """Every worker must serve `live` from now on; those numbered in `have` do already."""
        self.live = live
        for number in have:
            self.members.all[number].has = live

    def grow(self) -> None:
        """Take in the newcomers that are ready; let others start, up to `rollout.max_workers`. It waits for nothing.

        To be called between batches, since the number of workers is that of a batch's shares.
        """
        self.take_in()
        if (most := self.cfg.rollout.max_workers) is not None:
            self.newcomers.add(most - len(self.members.all))

    def take_in(self) -> None:
        """The newcomers that are ready join the others."""
        self.newcomers.look(self.live)
        for newcomer in self.newcomers.ready(self.live):
            self.members.join(newcomer.member, newcomer.reserved)

    def ready(self) -> list[int]:
        """The numbers of the workers that may be asked at once: they have started and serve the live adapter."""
        return [
            member.number for member in self.members.present if member.started and member.has is self.live
        ]

    def answers(
        self, questions: Mapping[int, Ask], kept: type[RlpostError] | None = None, own: bool = False
    ) -> Generator[tuple[int, Any]]:
        """Have all questions answered at once; yield (number of a question, an answer) in the order of arrival.

        Question n goes to worker n. If that is lost, its replacement is asked, from the beginning. The question of a
        missing worker goes to another one that is idle; if it is the worker's `own`, to none. An error of the type
        `kept` counts as an answer. If this ends early, open questions are cancelled.

        Raises:
            RolloutError: workers were lost, and neither rollout.restarts nor rollout.min_workers allows more.
            ClusterError: a worker missed a deadline, or no node has room for it.
        """
        unasked = set(questions)
        try:
            while True:
                if own:
                    unasked -= {member.number for member in self.members.all if member.missing}
                self._hand_out(questions, unasked)
                if not unasked and not self._asked():
                    return
                asked = first_answered({a: call.wait for a, call in self._calls.items()}, self._meanwhile)
                if asked is None:
                    self._overdue()
                else:
                    yield from self._heard(asked, unasked, kept)
        finally:
            self._cancel_questions()

    def next_answers(
        self, workers: Mapping[Asked, int], deadlines: Mapping[Asked, float]
    ) -> tuple[Asked, list[Any], bool]:
        """See `RolloutPool.next_answers`."""
        seconds, names = self.cfg.rollout.timeout_s, {i: self.members.all[i].name for i in workers.values()}
        waits = {asked: Wait(names[i], seconds, deadlines[asked]) for asked, i in workers.items()}
        asked = first_answered(waits, self._meanwhile)
        if asked is None:
            now = time.monotonic()
            raise late(wait for wait in waits.values() if wait.deadline <= now)
        try:
            return asked, *take(asked, waits[asked].who)
        except ActorLostError as error:
            self._bring_up(self.members.all[workers[asked]], error)
            return asked, [], True

    def _bring_up(self, lost: Member, reason: ActorLostError) -> None:
        """Wait until another actor has the place of a lost one, and serves the live adapter."""
        self.members.lost(lost, reason)
        self._wait_for(lost)

    def renew(self, member: Member) -> None:
        """Put a new actor with the live adapter in the place of an idle one. Raises like `answers`."""
        self.members.renew(member)
        self._wait_for(member)

    def _wait_for(self, member: Member) -> None:
        """Wait until a member has started and serves the live adapter."""
        list(self.answers({member.number: lambda actor: actor.__ray_ready__.remote()}, own=True))

    def close(self) -> None:
        """End the process of every worker."""
        self.newcomers.close()
        self.members.close()
        self._calls = {}

    def _all(self, asked: list[Any], seconds: float) -> list[Any]:
        return get_all(asked, seconds, [member.name for member in self.members.all])

    def _asked(self) -> dict[Asked, Call]:
        """The questions that are being answered."""
        return {asked: call for asked, call in self._calls.items() if call.step is Step.answer}

    def _cancel_questions(self) -> None:
        questions = self._asked()
        deadline = min((call.wait.deadline for call in questions.values()), default=0.0)
        cancel({asked: call.begun for asked, call in questions.items()}, deadline)
        for asked in questions:
            del self._calls[asked]

    def _hand_out(self, questions: Mapping[int, Ask], unasked: set[int]) -> None:
        """Give each idle worker its next step."""
        busy, now = {call.member.number for call in self._calls.values()}, time.monotonic()
        for member in self.members.all:
            if member.gone or member.number in busy:
                continue
            if not member.placed:
                self._expect(member, Step.be_placed, member.placing, now)
            elif not member.started:
                self._expect(member, Step.start, member.starting, now)
            elif self.live is not None and member.has is not self.live:
                member.has = self.live
                self._expect(member, Step.take_adapter, member.actor.swap.remote(*self.live), now)
            elif (number := self._question_for(member, unasked)) is not None:
                unasked.remove(number)
                self._expect(member, Step.answer, questions[number](member.actor), now, number)

    def _question_for(self, member: Member, unasked: set[int]) -> int | None:
        """The question for an idle worker: its own, else one whose worker is missing."""
        if member.number in unasked:
            return member.number
        return min((number for number in unasked if self.members.all[number].missing), default=None)

    def _expect(
        self, member: Member, step: Step, asked: Asked, now: float, question: int | None = None
    ) -> None:
        """Wait for a call. Those that were made together have the same `now`, and so the same deadline."""
        seconds = self.cfg.ray.timeout_s if step is Step.be_placed else self.cfg.rollout.timeout_s
        self._calls[asked] = Call(member, step, Wait(member.name, seconds, now + seconds), question)

    def _heard(
        self, asked: Asked, unasked: set[int], kept: type[RlpostError] | None
    ) -> Generator[tuple[int, Any]]:
        """Take what came of a call. Yields the answers to a question."""
        call, over = self._calls[asked], True
        answers: list[Any] = []
        try:
            answers, over = take(asked, call.wait.who)
        except ActorLostError as error:
            self.members.lost(call.member, error)
            if call.question is not None:
                unasked.add(call.question)
        except RlpostError as error:
            if call.question is None or kept is None or not isinstance(error, kept):
                raise
            answers = [error]
        else:
            if call.step is Step.be_placed:
                self.members.placed(call.member)
            elif call.step is Step.start:
                call.member.started = True
        call.begun = True
        if over:
            del self._calls[asked]
        if call.question is not None:
            yield from ((call.question, answer) for answer in answers)

    def _overdue(self) -> None:
        """The earliest deadline has passed. Raises ClusterError, unless a worker without a node can be spared."""
        now = time.monotonic()
        overdue = {asked: call for asked, call in self._calls.items() if call.wait.deadline <= now}
        if silent := [call.wait for call in overdue.values() if call.step is not Step.be_placed]:
            raise late(silent)
        for asked, call in overdue.items():
            self.members.homeless(call.member)
            self._calls[asked] = replace(call, wait=replace(call.wait, deadline=math.inf))

    def _meanwhile(self) -> None:
        self.check()
        self.newcomers.look(self.live)
        now = time.monotonic()
        for call in self._calls.values():
            began = call.wait.deadline - call.wait.seconds
            if call.step is Step.be_placed and now - began > NOTICE_S:
                self.members.waits(call.member)
