"""The sentences for the player after an attempt (mended mode)."""

from __future__ import annotations

from rlpost.envs.navigation.outcomes import Outcome
from rlpost.envs.navigation.rules import Words

_MAX_ACTION_TEXT = 40  # characters

_FIXED = {
    Outcome.CORRECT: "the action is right.",
    Outcome.ARRIVED: "you have arrived.",
    Outcome.IMAGINED_INTERSECTION: "you are not at an intersection.",
    Outcome.MISSED_INTERSECTION: "you are at an intersection.",
    Outcome.NO_ACTION: 'the answer has no "action".',
    Outcome.TOO_LONG: "the answer is too long.",
    Outcome.RECOVERED: "you are nearer again.",
    Outcome.ASTRAY: "you went astray.",
    Outcome.NO_WAY: "there is no street that way.",
    Outcome.STOPPED_SHORT: "you stopped away from the destination.",
}


def sentence(outcome: Outcome, action: str, rule: Words) -> str:
    """The sentence for an outcome. `action` is the attempted action, as written."""
    if outcome is Outcome.ILLEGAL_ACTION:
        words = ", ".join(rule.words)
        return f"the action must be forward(), stop() or turn_direction(x), where x is one of {words}."
    if outcome is Outcome.WRONG_ACTION:
        return f"{action if len(action) <= _MAX_ACTION_TEXT else 'the action'} is wrong here."
    return _FIXED[outcome]
