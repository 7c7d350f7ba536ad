"""A walk along a route on the rail: the places, the attempts, and the effect of each answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlpost.envs.choices import Mode
from rlpost.envs.navigation import compat, verifier
from rlpost.envs.navigation.actions import STOP
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.outcomes import Outcome, Verdict
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.rules import Words

WELL = (Outcome.CORRECT, Outcome.ARRIVED)


@dataclass(frozen=True)
class Step:
    """The result of an answer. `moved` says whether the walker is at a new place."""

    verdict: Verdict
    terminated: bool
    truncated: bool
    moved: bool
    attempt: int  # at this place, from 1

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Session(Protocol):
    """A walk along a route. A copy (copy.copy) continues independently of the original."""

    @property
    def now(self) -> Entry:
        """The current place, with its right action."""

    @property
    def walked(self) -> tuple[Place, ...]:
        """The places visited so far, in order, including the current one."""

    def take(self, answer: str) -> Step:
        """Grade an answer and act on it. It must not be called when the route is over."""


class OnRail:
    """The published forced rail: a right action leads to the next place, whatever it is; a wrong one leads nowhere.

    Mended: the last graded failure at a place truncates. Compat: one more attempt, which is not read, truncates, and
    also terminates if the right action is to stop.
    """

    def __init__(self, entries: list[Entry], rule: Words, mode: Mode, verify_iter: int) -> None:
        self._entries, self._rule, self._mode, self._verify_iter = entries, rule, mode, verify_iter
        self._index = self._attempts = 0

    @property
    def now(self) -> Entry:
        return self._entries[self._index]

    @property
    def walked(self) -> tuple[Place, ...]:
        return tuple(entry.view.place for entry in self._entries[: self._index + 1])

    def grade(self, answer: str) -> Verdict:
        if self._mode is Mode.COMPAT:
            return compat.grade(answer, self.now)
        return verifier.grade(answer, self.now, self._rule)

    def take(self, answer: str) -> Step:
        attempt = self._attempts + 1
        unread = attempt > self._verify_iter
        verdict = compat.step_limit() if unread else self.grade(answer)
        arrived, right = verdict.outcome is Outcome.ARRIVED, verdict.outcome in WELL
        last = self._verify_iter + (self._mode is Mode.COMPAT)
        terminated = arrived or (unread and self.now.action == STOP)
        self._attempts = 0 if right else attempt
        self._index += verdict.outcome is Outcome.CORRECT
        return Step(verdict, terminated, not right and attempt == last, right and not arrived, attempt)
