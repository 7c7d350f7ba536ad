"""The verdict table: what the intervals at the end of the budget say of each contrast on each variant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlpost.compare.design.types import Role
from rlpost.compare.statistics.estimates import Difference
from rlpost.compare.statistics.intervals import Interval


class Verdict(StrEnum):
    """What a simultaneous 95% interval says of a difference."""

    UP = "up"  # the whole interval lies above zero
    DOWN = "down"  # below zero
    UNCLEAR = "unclear"  # it holds zero
    UNKNOWN = "unknown"  # there is no pair to compare


def verdict_of(interval: Interval) -> Verdict:
    if interval.low > 0:
        return Verdict.UP
    return Verdict.DOWN if interval.high < 0 else Verdict.UNCLEAR


@dataclass(frozen=True)
class Row:
    """One variant and one contrast, `arm - baseline`."""

    variant: str
    role: Role
    arm: str
    baseline: str
    verdict: Verdict
    difference: Difference | None  # None: no seed has both

    @property
    def held_out(self) -> bool:
        return self.role is Role.HELD_OUT

    @property
    def contrast(self) -> str:
        return f"{self.arm} - {self.baseline}"
