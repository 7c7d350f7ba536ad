"""The named outcomes of an attempt, and the verdict that carries one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlpost.envs.causes import (
    FAULT,
    ILLEGAL_ACTION,
    OBSERVATION,
    RULE_MISREAD,
    RULE_OBEYED,
    SOLVED,
    SYNTAX,
    TRUNCATION,
    UNFINISHED,
    WRONG_WAY,
)


class Outcome(Enum):
    """The outcome of one attempt; the value explains it. Groups: both movements, free only, compat only."""

    CORRECT = "The right action: one is a step further."
    ARRIVED = "The right stop: the route is done."
    WRONG_ACTION = "An action that there is, but not the right one here."
    IMAGINED_INTERSECTION = "A wrong action, and the observation has an intersection where there is none."
    MISSED_INTERSECTION = "A wrong action, and the observation lacks the intersection that there is."
    RULE_MISREAD = (
        "A turn by a word of the trained rule, where the stated rule has others; rewarded as it was."
    )
    STATED_RULE = "Fake rules only: a turn by a word of the rule that the prompt states; rewarded as it was."
    ILLEGAL_ACTION = "The action is none of the action space."
    NO_ACTION = "No action could be found in the answer."
    TOO_LONG = "The answer is longer than is read at all."

    RECOVERED = "A step that brings one nearer to the destination, but not nearer than one has been."
    ASTRAY = "A step that neither follows the instructions nor brings one nearer."
    NO_WAY = "There is no street in that direction."
    STOPPED_SHORT = "Stopped away from the destination: the route is lost."

    STEP_LIMIT = "Published row 5: an attempt beyond the limit, which is not looked at."
    CRASH = "The published verifier raises for a wrong action with an observation that is no text, list or object."

    @property
    def meaning(self) -> str:
        return self.value


CAUSES = {
    Outcome.ARRIVED.name: SOLVED,
    Outcome.RULE_MISREAD.name: RULE_MISREAD,
    Outcome.STATED_RULE.name: RULE_OBEYED,
    Outcome.WRONG_ACTION.name: WRONG_WAY,
    Outcome.RECOVERED.name: WRONG_WAY,
    Outcome.ASTRAY.name: WRONG_WAY,
    Outcome.NO_WAY.name: WRONG_WAY,
    Outcome.STOPPED_SHORT.name: WRONG_WAY,
    Outcome.IMAGINED_INTERSECTION.name: OBSERVATION,
    Outcome.MISSED_INTERSECTION.name: OBSERVATION,
    Outcome.ILLEGAL_ACTION.name: ILLEGAL_ACTION,
    Outcome.NO_ACTION.name: SYNTAX,
    Outcome.TOO_LONG.name: TRUNCATION,
    # The last outcome of a failed episode in which every step was right, but the context was full.
    Outcome.CORRECT.name: UNFINISHED,
    Outcome.STEP_LIMIT.name: UNFINISHED,
    Outcome.CRASH.name: FAULT,
}


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reward: float
    feedback: str  # a sentence for the player
    action: str | None = None  # as written; None if none was found
