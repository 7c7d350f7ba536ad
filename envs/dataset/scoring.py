"""From an answer and a row to a verdict: by a function of the user's, or by comparison with the row's answer."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

from envs import own
from envs.dataset.settings import Settings
from envs.errors import Refused
from envs.one_turn import Verdict

Row = Mapping[str, Any]
Score = Callable[[str, Row], Any]
"""(the model's answer, the row) -> bool, reward, or (reward, outcome)."""

_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+")
_MAX_DIGITS = 200
_DEFINE = "define it as: def score(answer: str, row: dict) -> float"


def scorer(settings: Settings) -> Score:
    """The function that `score` names. Refused where it cannot be imported or takes other arguments."""
    built_in = {"exact": _exact, "number": _numeric}
    if settings.score in built_in:
        return built_in[settings.score](settings)
    if ":" not in settings.score:
        raise Refused(
            f"score={settings.score!r}: is neither {' nor '.join(built_in)} nor a function",
            "write my_module:my_function",
        )
    function = own.load(settings.score)
    _refuse_no_scorer(settings.score, function)
    try:
        inspect.signature(function).bind("answer", {})
    except (TypeError, ValueError) as error:
        raise Refused(
            f"score={settings.score}: cannot be called with an answer and a row: {error}",
            _DEFINE,
        ) from error
    return function  # type: ignore[no-any-return]


def _refuse_no_scorer(reference: str, found: Any) -> None:
    """Refused for a class, and for what the user's module merely imported from the standard library."""
    while isinstance(found, functools.partial):
        found = found.func
    home = str(getattr(found, "__module__", None) or "").partition(".")[0]
    if isinstance(found, type) or home in sys.stdlib_module_names:
        what = "a class" if isinstance(found, type) else f"of Python's module {home}"
        raise Refused(f"score={reference}: is no scorer but {what}", _DEFINE)


def compares(settings: Settings) -> bool:
    """Whether rows need an answer to be compared with."""
    return settings.score in ("exact", "number")


def verdict(result: object, settings: Settings) -> Verdict:
    """What a scorer returned, in one form. TypeError or ValueError where it is of none that is understood."""
    outcome = None
    reward = result
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str) and result[1]:
        reward, outcome = result
    if not isinstance(reward, Real):
        raise TypeError(
            f"score={settings.score} returned {result!r}: must be a bool, a number, or (number, outcome)"
        )
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"score={settings.score} returned {result!r}: must be finite")
    success = value >= settings.success_at
    return Verdict(value, outcome or ("CORRECT" if success else "PARTIAL" if value > 0 else "WRONG"), success)


def after_marker(text: str, marker: str | None) -> str | None:
    """What stands after the last marker; None where there is none. Without a marker, the whole text."""
    if marker is None:
        return text.strip()
    _, found, tail = text.rpartition(marker)
    return tail.strip() if found else None


def given_answer(row: Row, settings: Settings) -> str:
    """The row's answer as text: after the marker, where it has one."""
    text = str(row[settings.answer])
    return after_marker(text, settings.marker) or text.strip()


def number_in(text: str, last: bool) -> Fraction | None:
    """The first or last number of a text, exactly: thousands may have commas, fractions a slash."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    digits = found[-1 if last else 0].replace(",", "")
    try:
        return Fraction(digits) if len(digits) <= _MAX_DIGITS else None
    except ZeroDivisionError:
        return None


def _exact(settings: Settings) -> Score:
    def score(answer: str, row: Row) -> tuple[float, str]:
        said = after_marker(answer, settings.marker)
        if said is None:
            return 0.0, "NO_ANSWER"
        right = said == given_answer(row, settings)
        return float(right), "CORRECT" if right else "WRONG"

    return score


def _numeric(settings: Settings) -> Score:
    def score(answer: str, row: Row) -> tuple[float, str]:
        said = after_marker(answer, settings.marker)
        value = None if said is None else number_in(said, last=settings.marker is None)
        if value is None:
            return 0.0, "NO_ANSWER"
        right = value == number_in(given_answer(row, settings), last=settings.marker is None)
        return float(right), "CORRECT" if right else "WRONG"

    return score
