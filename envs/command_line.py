"""An environment's arguments from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_JSON_BEGINS = tuple('-0123456789["{')


def _value(text: str) -> Any:
    """Numbers, lists, quoted texts, true, false and null are read as JSON; everything else is text."""
    if text in ("true", "false", "null") or text.startswith(_JSON_BEGINS):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def env_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as keyword arguments. Raises ValueError for a text without `=`."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--arg {pair}: must be KEY=VALUE")
        found[key] = _value(value)
    return found
