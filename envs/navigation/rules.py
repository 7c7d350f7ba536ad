"""The two action spaces: compass directions, or directions relative to the walker's heading."""

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
    """The values of x in turn_direction(x), and the x that makes a turn. The enum below has the registered rules."""

    @property
    def words(self) -> tuple[str, ...]: ...

    def word(self, facing: int, towards: int) -> str: ...


class Rule(StrEnum):
    ABSOLUTE = "absolute"
    RELATIVE = "relative"

    @property
    def words(self) -> tuple[str, ...]:
        """The values that x may have in turn_direction(x)."""
        return COMPASS if self is Rule.ABSOLUTE else RELATIVE

    def word(self, facing: int, towards: int) -> str:
        """The x that turns from one heading to another."""
        return compass_word(towards) if self is Rule.ABSOLUTE else relative_word(facing, towards)

    def published_word(self, facing: int, towards: int) -> str:
        """The same, with the published fault: relative turns do not wrap around."""
        return compass_word(towards) if self is Rule.ABSOLUTE else published_relative_word(facing, towards)
