"""From an answer and a row to a verdict: by a function of the user's, or by comparison with the row's answer."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

from rlpost.envs import own
from rlpost.envs.dataset.numbers import is_number, number_in, number_of, whole_number
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.errors import Refused
from rlpost.envs.one_turn import Verdict

Row = dict[str, Any]
Score = Callable[[str, Row], Any]
"""(the model's answer, the row) -> bool, reward, or (reward, outcome); see `verdict`."""

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
    return lambda answer, row: function(answer, copy.deepcopy(row))  # what it does to a row stays with it


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
    """What a scorer returned, in one form: a bool or a number, alone or with the name of an outcome.

    A number may be whatever holds one and has `.item()`: NumPy's, a tensor or an array of one element. TypeError or
    ValueError where it is none, or is not finite.
    """
    outcome = None
    reward = result
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str) and result[1]:
        reward, outcome = result
    value = _number(reward)
    if value is None:
        raise TypeError(
            f"score={settings.score} returned {_shown(result)}: must be a bool, a number, or (number, outcome)"
        )
    if not math.isfinite(value):
        raise ValueError(f"score={settings.score} returned {_shown(result)}: must be finite")
    success = value >= settings.success_at
    return Verdict(value, outcome or ("CORRECT" if success else "PARTIAL" if value > 0 else "WRONG"), success)


def _number(reward: object) -> float | None:
    """None where it is no number; infinite where it is one that no float holds."""
    if not isinstance(reward, (Real, Decimal)) and callable(item := getattr(reward, "item", None)):
        try:
            reward = item()
        except Exception:  # of more than one element, or an `item` of another kind
            return None
    if not isinstance(reward, (Real, Decimal)):
        return None
    try:
        return float(reward)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN
        return math.nan


def _shown(result: object) -> str:
    try:
        return repr(result)[:200]
    except Exception:  # it is the scorer's own object
        return f"an object of {type(result).__name__}"


def after_marker(text: str, marker: str | None) -> str | None:
    """What stands after the last marker; None where there is none. Without a marker, the whole text."""
    if marker is None:
        return text.strip()
    _, found, tail = text.rpartition(marker)
    return tail.strip() if found else None


def is_answer(value: object) -> bool:
    """Whether a field holds something to compare with: a text, a finite number, true or false."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, bool) or number_of(value) is not None


def answer_text(value: object, settings: Settings) -> str:
    """A row's answer as text: after the marker, where it has one."""
    text = str(value)
    return after_marker(text, settings.marker) or text.strip()


def answer_number(value: object, settings: Settings) -> Fraction | None:
    """A row's answer as a number: the field's own, or the one in its text. None where there is none."""
    if isinstance(value, str):
        return number_in(answer_text(value, settings), last=settings.marker is None)
    return number_of(value)


def _exact(settings: Settings) -> Score:
    def equal(said: str, given: Any) -> bool:
        """A text is compared letter by letter; a number, whose spelling no row holds, as a number."""
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


def _numeric(settings: Settings) -> Score:
    def score(answer: str, row: Row) -> tuple[float, str]:
        said = after_marker(answer, settings.marker)
        value = None if said is None else number_in(said, last=settings.marker is None)
        if value is None:
            return 0.0, "NO_ANSWER"
        given = row[settings.answer]
        right = value == answer_number(given, settings) if isinstance(given, str) else is_number(value, given)
        return float(right), "CORRECT" if right else "WRONG"

    return score
