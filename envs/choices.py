"""Checks arguments that must be one of a few words, or a bounded number."""

from __future__ import annotations

import math
from enum import Enum, StrEnum
from typing import TypeVar

Choice = TypeVar("Choice", bound=Enum)


class Mode(StrEnum):
    MENDED = "mended"  # exact, one outcome per attempt, truncation is reported as truncation
    COMPAT = "compat"  # the published verifier with its faults


def choose(kind: type[Choice], key: str, value: object) -> Choice:
    """The member whose value is `value`. Raises ValueError that names the key, the value and the choices."""
    for member in kind:
        if value == member.value:
            return member
    choices = ", ".join(str(member.value) for member in kind)
    raise ValueError(f"{key}={value!r}: must be one of {choices}")


def whole(key: str, value: object, least: int, most: int | None, what: str) -> int:
    """A whole number within its bounds. Raises ValueError that names the key, the value and what it should be."""
    highest = math.inf if most is None else most
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= highest:
        return value
    bound = "" if most is None else f" and at most {most}"
    raise ValueError(f"{key}={value!r}: must be a whole number of {what}, at least {least}{bound}")
