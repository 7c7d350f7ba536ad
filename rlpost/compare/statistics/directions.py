"""The direction of each contrast at the end of the budget, on each variant and over all held-out rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rlpost.compare.design.types import Role
from rlpost.compare.statistics.estimates import Difference
from rlpost.compare.statistics.intervals import Interval


class Direction(StrEnum):
    """What a simultaneous 95% interval says about a difference."""

    UP = "up"  # the whole interval lies above zero
    DOWN = "down"  # the whole interval lies below zero
    UNCLEAR = "unclear"  # the interval contains zero
    UNKNOWN = "unknown"  # there is no pair to compare


def direction_of(interval: Interval) -> Direction:
    if interval.low > 0:
        return Direction.UP
    return Direction.DOWN if interval.high < 0 else Direction.UNCLEAR


@dataclass(frozen=True)
class ContrastResult:
    """One variant and one contrast, `arm - baseline`."""

    variant: str
    role: Role
    arm: str
    baseline: str
    direction: Direction
    difference: Difference | None  # None: no seed has both

    @property
    def held_out(self) -> bool:
        return self.role is Role.HELD_OUT

    @property
    def contrast(self) -> str:
        return f"{self.arm} - {self.baseline}"


class Change(StrEnum):
    """The direction of one contrast over all held-out rules."""

    UP = "up on every rule"
    PARTLY_UP = "up on some rules, down on none"
    DOWN = "down on every rule"
    PARTLY_DOWN = "down on some rules, up on none"
    MIXED = "up on some rules, down on others"
    UNCLEAR = "neither up nor down on any rule"
    UNKNOWN = "no pair on any rule"


def held_out_change(rows: Sequence[ContrastResult]) -> Change:
    """The change of one contrast over held-out variants; other variants do not count."""
    directions = [row.direction for row in rows if row.held_out]
    up, down = directions.count(Direction.UP), directions.count(Direction.DOWN)
    if directions.count(Direction.UNKNOWN) == len(directions):
        return Change.UNKNOWN
    if up and down:
        return Change.MIXED
    if up:
        return Change.UP if up == len(directions) else Change.PARTLY_UP
    if down:
        return Change.DOWN if down == len(directions) else Change.PARTLY_DOWN
    return Change.UNCLEAR
