"""The causes of failures, and the share of failures that apply the trained rule to a held-out one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rlpost.compare.design.types import Comparison, Evaluation
from rlpost.compare.statistics.estimates import instances_of, table
from rlpost.compare.statistics.evaluations import BySeed, Key, by_key
from rlpost.compare.statistics.intervals import Interval, ratio
from rlpost.envs.causes import FAULT, ORDER, RULE_MISREAD, SOLVED, TRUNCATION
from rlpost.types import Ending, Finish, Trajectory

# Stands in place of an outcome: the environment failed.
BROKEN = tuple(ending.name for ending in Ending if ending.broken)
# A length limit cut the last answer before anything in it could be parsed.
CUT_OFF = "CUT_OFF"
NO_ROOM = Ending.CONTEXT_FULL.name  # there was no room for even one answer
STEP_LIMIT = "STEP_LIMIT"  # both environments' name for the published attempt that nobody grades
_UNREADABLE = ("NO_FORMULA", "NO_ACTION", "SYNTAX", "ILLEGAL_CHARACTER")

_ALWAYS = {**dict.fromkeys(BROKEN, FAULT), CUT_OFF: TRUNCATION, NO_ROOM: TRUNCATION}


@dataclass(frozen=True)
class Causes:
    """How the episodes of one arm on one variant at one point ended, pooled over seeds."""

    arm: str
    variant: str
    share: float
    shares: Mapping[str, float]  # by cause, of all episodes, in the order of ORDER; they sum to 1
    failures: int
    # The share of failures that apply the trained rule; None without failures, or if the environment cannot tell.
    memorization: Interval | None


def last_outcome(trajectory: Trajectory) -> str:
    """The outcome for an Evaluation: that of the last graded turn, or one of BROKEN, CUT_OFF or NO_ROOM."""
    if trajectory.ending.broken:
        return trajectory.ending.name
    if not trajectory.turns:
        return NO_ROOM
    graded = [turn for turn in trajectory.turns if turn.outcome != STEP_LIMIT] or trajectory.turns
    last = graded[-1]
    cut = last.finish is Finish.LENGTH and last.outcome in _UNREADABLE
    return CUT_OFF if cut else last.outcome


def cause_of(declared: Mapping[str, str], outcome: str) -> str:
    """The cause of an outcome. An outcome that the environment does not declare is its own cause."""
    return _ALWAYS.get(outcome) or declared.get(outcome, outcome)


def measures_memorization(comparison: Comparison) -> bool:
    """Whether the environment can tell failures that apply the trained rule from other failures."""
    return RULE_MISREAD in comparison.causes.values()


def causes(comparison: Comparison) -> list[Causes]:
    """The causes of every arm or start, variant and share that at least one seed has, sorted by these three."""
    measured = measures_memorization(comparison)
    return [_causes(comparison.causes, measured, *each) for each in by_key(comparison).items()]


def _causes(declared: Mapping[str, str], measured: bool, key: Key, seeds: BySeed) -> Causes:
    counts = Counter(each for evaluation in seeds.values() for each in _of(declared, evaluation))
    failed_SN = 1 - table(seeds, lambda evaluation: evaluation.successes)
    misread_SN = table(seeds, lambda evaluation: (each == RULE_MISREAD for each in _of(declared, evaluation)))
    shares = {cause: counts[cause] / counts.total() for cause in sorted(counts, key=_rank)}
    memorization = ratio(misread_SN, failed_SN, instances_of(seeds)) if measured else None
    return Causes(*key, shares, int(failed_SN.sum()), memorization)


def _of(declared: Mapping[str, str], evaluation: Evaluation) -> list[str]:
    pairs = zip(evaluation.successes, evaluation.outcomes, strict=True)
    return [SOLVED if success else cause_of(declared, outcome) for success, outcome in pairs]


def _rank(cause: str) -> tuple[int, str]:
    """The sort key of a cause: known ones in their fixed order, then unknown ones by name."""
    return (ORDER.index(cause) if cause in ORDER else len(ORDER)), cause
