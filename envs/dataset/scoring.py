"""The ready scorers: compare with a row's answer as text, number or formula, or run a row's tests of code."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rlpost.envs.dataset.conversation import Row
from rlpost.envs.dataset.numbers import is_number, number_in, number_of, whole_number
from rlpost.envs.dataset.settings import Settings

Compare = Callable[[str, Row], tuple[float, str]]
"""Maps (the model's answer, the row) to reward and outcome."""


def compares(settings: Settings) -> bool:
    """Whether a ready scorer needs rows to have an answer to compare with."""
    return not {"exact", "number", "math"}.isdisjoint(settings.score)


def applies(row: Row, field: str, settings: Settings) -> bool:
    """Whether a ready scorer that reads `field` scores a row. One of several scorers skips rows without the field."""
    return len(settings.score) == 1 or row.get(field) is not None


def after_marker(text: str, marker: str | None) -> str | None:
    """The text after the last marker; None if the marker does not occur. With `marker` None, the whole text."""
    if marker is None:
        return text.strip()
    _, found, tail = text.rpartition(marker)
    return tail.strip() if found else None


def is_answer(value: object) -> bool:
    """Whether a field contains something to compare with: a text, a finite number, true or false."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, bool) or number_of(value) is not None


def answer_text(value: object, settings: Settings) -> str:
    """A row's answer as text: the part after the marker, if it has the marker."""
    text = str(value)
    return after_marker(text, settings.marker) or text.strip()


def answer_number(value: object, settings: Settings) -> Fraction | None:
    """A row's answer as a number: the field itself, or the number in its text. None if there is none."""
    if isinstance(value, str):
        return number_in(answer_text(value, settings), last=settings.marker is None)
    return number_of(value)


def _exact(settings: Settings) -> Compare:
    def equal(said: str, given: Any) -> bool:
        """Compare a text letter by letter, and a number, whose spelling no row fixes, as a number."""
        if isinstance(given, str):
            return said == answer_text(given, settings)
        if isinstance(given, bool):
            return said.casefold() == str(given).casefold()
        number = whole_number(said)
        return number is not None and is_number(number, given)

    def score(answer: str, row: Row) -> tuple[float, str]:
        said = after_marker(answer, settings.marker)
        if said is None:
            return 0.0, "NO_ANSWER"
        right = equal(said, row[settings.answer])
        return float(right), "CORRECT" if right else "WRONG"

    return score


def _numeric(settings: Settings) -> Compare:
    def score(answer: str, row: Row) -> tuple[float, str]:
        said = after_marker(answer, settings.marker)
        value = None if said is None else number_in(said, last=settings.marker is None)
        if value is None:
            return 0.0, "NO_ANSWER"
        given = row[settings.answer]
        right = value == answer_number(given, settings) if isinstance(given, str) else is_number(value, given)
        return float(right), "CORRECT" if right else "WRONG"

    return score


def _math(settings: Settings) -> Compare:
    from rlpost.envs.scorers.formulas import compared, refuse_missing

    refuse_missing()

    def score(answer: str, row: Row) -> tuple[float, str]:
        return compared(answer, answer_text(row[settings.answer], settings), settings.time_limit_s)

    return score


def _code(settings: Settings) -> Compare:
    from rlpost.envs.scorers.code_tests import passed
    from rlpost.envs.scorers.sandbox import Limits

    limits = Limits(settings.time_limit_s, settings.memory_mib)

    def score(answer: str, row: Row) -> tuple[float, str]:
        return passed(answer, row[settings.tests], limits)

    return score


_READY: dict[str, Callable[[Settings], Compare]] = {
    "exact": _exact,
    "number": _numeric,
    "math": _math,
    "code": _code,
}
READY = tuple(_READY)


def ready(name: str, settings: Settings) -> Callable[[str, Row], tuple[float, str] | None]:
    """The scorer with this name in READY. It returns None for a row to which it does not apply.

    Raises Refused if a package that it needs is not installed.
    """
    compare, field = _READY[name](settings), settings.tests if name == "code" else settings.answer
    return lambda answer, row: compare(answer, row) if applies(row, field, settings) else None
