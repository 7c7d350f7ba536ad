"""What went wrong, by cause; and how much of it is the old rule applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlpost.compare.statistics import Interval
from rlpost.compare.types import Comparison
from rlpost.types import Trajectory

SOLVED = "solved"
RULE_MISREAD = "rule misread"
ENV_ERROR = "ENV_ERROR"  # the outcome of an episode that an environment's error ended
CUT_OFF = "CUT_OFF"  # of one whose last answer was cut by a length limit before it said anything readable


@dataclass(frozen=True)
class Causes:
    """How the episodes of one arm on one variant at one point ended, pooled over seeds."""

    arm: str
    variant: str
    share: float
    shares: Mapping[str, float]  # by cause, of all episodes; SOLVED first; they sum to 1
    failures: int
    memorization: Interval | None  # share of the failures that are the trained rule applied; None without failures


def last_outcome(trajectory: Trajectory) -> str:
    """The outcome that an Evaluation holds: of the last turn, or ENV_ERROR, or CUT_OFF."""
    raise NotImplementedError


def cause_of(env: str, outcome: str) -> str:
    """The cause that an outcome belongs to; of an environment unknown here, the outcome itself."""
    raise NotImplementedError


def causes(comparison: Comparison) -> list[Causes]:
    """Of every arm (INIT too), variant and share that at least one seed has, in that order."""
    raise NotImplementedError
