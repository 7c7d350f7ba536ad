"""An environment's arguments from the command line."""

from __future__ import annotations

from collections.abc import Iterable


def _value(text: str) -> str | int | bool:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text


def env_arguments(pairs: Iterable[str]) -> dict[str, str | int | bool]:
    """`key=value` texts as keyword arguments; whole numbers, true and false by type. ValueError without a `=`."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--arg {pair}: must be KEY=VALUE")
        found[key] = _value(value)
    return found
