"""The sentences for the player after a failed attempt (mended mode). Models are trained on these sentences."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction

from rlpost.envs.generalpoints.outcomes import Outcome

_MAX_VALUE_TEXT = 24  # characters


class FeedbackStyle(StrEnum):
    FULL = "full"  # names the cards' numbers if they were not used, as the published feedback does
    LEAK_FREE = "leak_free"  # says what is wrong, but not what would be right


_FIXED = {
    Outcome.CORRECT: "the formula is correct.",
    Outcome.DIVISION_BY_ZERO: "the formula divides by zero.",
    Outcome.SYNTAX: "the formula is not valid arithmetic.",
    Outcome.ILLEGAL_CHARACTER: "the formula has characters other than digits, + - * / and parentheses.",
    Outcome.NO_FORMULA: 'the answer has no "formula".',
    Outcome.TOO_LONG: "the answer is too long.",
}


def wrong_value(value: Fraction, target: int) -> str:
    text = str(value)
    if len(text) > _MAX_VALUE_TEXT:
        return f"the formula does not equal {target}."
    return f"the formula equals {text}, not {target}."


def wrong_numbers(values: tuple[int, ...], style: FeedbackStyle) -> str:
    if style is FeedbackStyle.LEAK_FREE:
        return "the formula must use each card's number once."
    return f"the formula must use each of {', '.join(map(str, sorted(values)))} once."


def sentence(
    outcome: Outcome, value: Fraction | None, values: tuple[int, ...], target: int, style: FeedbackStyle
) -> str:
    """The sentence for an outcome of the mended verifier. `value` is the value of the formula."""
    if outcome is Outcome.WRONG_VALUE:
        assert value is not None
        return wrong_value(value, target)
    if outcome is Outcome.WRONG_NUMBERS:
        return wrong_numbers(values, style)
    return _FIXED[outcome]
