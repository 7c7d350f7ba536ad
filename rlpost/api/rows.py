"""Rows that are given from Python, as the JSONL of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlpost.config.keys import refusal
from rlpost.errors import ConfigError


def lines_of(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as JSONL. Raises ConfigError for one that is no JSON object, by its number."""
    return b"".join(_line(number, row) for number, row in enumerate(rows))


def _line(number: int, row: object) -> bytes:
    if not isinstance(row, Mapping):
        raise _bad_row(number, f"it is of type {type(row).__name__}, not a dict")
    if path := next(_not_json(dict(row), ""), None):
        raise _bad_row(number, path)
    return (json.dumps(dict(row), ensure_ascii=True) + "\n").encode()


def _bad_row(number: int, reason: str) -> ConfigError:
    return ConfigError(
        refusal(f"data[{number}]", "...", reason, "rows hold what JSON can: see docs/tutorial.md")
    )


def _not_json(value: Any, where: str) -> Iterator[str]:
    """What in a value would not come back from JSON as it was, in words."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                yield f"its key {key!r}{where} is no text"
            yield from _not_json(each, f" of field {key!r}{where}")
    elif isinstance(value, list):
        for each in value:
            yield from _not_json(each, where)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"a value{where} is {value}"
    elif value is not None and type(value) not in (str, bool, int, float):
        yield f"a value{where} is of type {type(value).__name__}, which JSON has not"
