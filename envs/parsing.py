"""Finds fields in a model's text: JSON, or nearly JSON, in time linear in its length. No eval."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MAX_ANSWER = 20_000  # longer answers are not read
_MAX_OBJECTS = 64  # how many of the last objects are tried as strict JSON: bounds the work on `{{{{...`

# Numbers stay text: there is no digit limit and no rounding, and a numeric field is graded as it was written.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


def _objects(text: str) -> Iterator[object]:
    """The outermost JSON objects in a text, in order."""
    end = 0
    for start in [match.start() for match in re.finditer(r"\{", text)][-_MAX_OBJECTS:]:
        if start < end:
            continue
        try:
            found, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        yield found


def last_object(text: str, key: str) -> dict[str, object] | None:
    """The last strict JSON object in a text that has the key. If a key is repeated, its last value counts."""
    found = [each for each in _objects(text) if isinstance(each, dict) and key in each]
    return found[-1] if found else None


def near_json(key: str, bare: str) -> re.Pattern[str]:
    """A pattern for `"key": ...` in nearly valid JSON: trailing comma, single quotes, or a value without quotes.

    `bare` is the pattern of an unquoted value, which must end its line or come before a comma or brace.
    """
    return re.compile(
        rf"""["']{key}["']\s*:\s*(?:"(?P<double>[^"\n]*)"|'(?P<single>[^'\n]*)'"""
        rf"""|(?P<bare>{bare})(?=[,}}\r\n]|$))"""
    )


def last_near_json(pattern: re.Pattern[str], text: str) -> str | None:
    """The value at the last match of a `near_json` pattern; None without a match."""
    found = list(pattern.finditer(text))
    return found[-1][found[-1].lastgroup or 0] if found else None
