"""From a model's answer to the text of its formula (mended mode), in time linear in the answer's length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from envs.generalpoints.outcomes import Outcome

MAX_ANSWER = 20_000  # characters
MAX_FORMULA = 200  # characters
_MAX_OBJECTS = 64  # objects tried as strict JSON, the last ones: bounds the work on `{{{{...`

# Numbers stay text: no digit limit, no rounding, and a formula that is a number is graded as it was written.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_TOLERANT = re.compile(
    r"""["']formula["']\s*:\s*(?:"(?P<double>[^"\n]*)"|'(?P<single>[^'\n]*)'"""
    r"""|(?P<bare>[0-9(][-+*/()=0-9 ]*)(?=[,}\r\n]|$))"""
)


def _objects(text: str) -> Iterator[object]:
    """The JSON objects in a text, outermost only, in order."""
    end = 0
    for start in [match.start() for match in re.finditer(r"\{", text)][-_MAX_OBJECTS:]:
        if start < end:
            continue
        try:
            found, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        yield found


def _strict(text: str) -> object:
    """The "formula" of the last JSON object that has one (of a repeated key, the last), or None."""
    found = [each["formula"] for each in _objects(text) if isinstance(each, dict) and "formula" in each]
    return found[-1] if found else None


def _tolerant(text: str) -> str | None:
    """The last `"formula": ...` of a text that is nearly JSON: trailing comma, single quotes, bare number."""
    found = list(_TOLERANT.finditer(text))
    return found[-1][found[-1].lastgroup or 0] if found else None


def find_formula(answer: str) -> str | Outcome:
    """The formula as written, up to its first `=`; or why there is none: NO_FORMULA or TOO_LONG."""
    if len(answer) > MAX_ANSWER:
        return Outcome.TOO_LONG
    formula = _strict(answer)
    if formula is None:
        formula = _tolerant(answer)
    if not isinstance(formula, str):
        return Outcome.NO_FORMULA
    if len(formula) > MAX_FORMULA:
        return Outcome.TOO_LONG
    return formula.split("=", 1)[0]
