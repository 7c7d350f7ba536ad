"""The two action spaces: by the compass, or relative to where one faces."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from rlpost.envs.navigation.geometry import (
    COMPASS,
    RELATIVE,
    compass_word,
    published_relative_word,
    relative_word,
)


class Words(Protocol):
    """What x may be in turn_direction(x), and which x makes a turn. Registered rules are of the enum below."""

    @property
    def words(self) -> tuple[str, ...]: ...

    def word(self, facing: int, towards: int) -> str: ...


class Rule(StrEnum):
    ABSOLUTE = "absolute"
    RELATIVE = "relative"

    @property
    def words(self) -> tuple[str, ...]:
        """What x may be in turn_direction(x)."""
        return COMPASS if self is Rule.ABSOLUTE else RELATIVE

    def word(self, facing: int, towards: int) -> str:
        """The x that turns from one heading to another."""
        return compass_word(towards) if self is Rule.ABSOLUTE else relative_word(facing, towards)

    def published_word(self, facing: int, towards: int) -> str:
        """The same with the published fault: relative turns do not wrap around."""
        return compass_word(towards) if self is Rule.ABSOLUTE else published_relative_word(facing, towards)
