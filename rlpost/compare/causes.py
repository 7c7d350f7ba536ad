"""What went wrong, by cause; and how much of it is the old rule applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rlpost.compare.evaluations import BySeed, Key, by_key
from rlpost.compare.intervals import Interval, ratio
from rlpost.compare.statistics import instances_of, table
from rlpost.compare.types import Comparison, Evaluation
from rlpost.types import Ending, Finish, Trajectory

SOLVED = "solved"
RULE_MISREAD = "rule misread"
ARITHMETIC = "arithmetic"
NUMBER_MISUSE = "number misuse"
WRONG_WAY = "wrong turn or step"
OBSERVATION = "observation error"
ILLEGAL_ACTION = "illegal action"
SYNTAX = "syntax"
TRUNCATION = "truncation"
UNFINISHED = "unfinished"
FAULT = "environment error"
ORDER = (
    SOLVED,
    RULE_MISREAD,
    ARITHMETIC,
    NUMBER_MISUSE,
    WRONG_WAY,
    OBSERVATION,
    ILLEGAL_ACTION,
    SYNTAX,
    TRUNCATION,
    UNFINISHED,
    FAULT,
)
"""Causes as they are shown, whatever the environment."""

BROKEN = tuple(
    ending.name for ending in Ending if ending.broken
)  # instead of an outcome: the environment's fault
CUT_OFF = "CUT_OFF"  # the last answer was cut by a length limit before it said anything readable
NO_ROOM = Ending.CONTEXT_FULL.name  # there was no room for even one answer
STEP_LIMIT = "STEP_LIMIT"  # both environments' name for the published attempt that nobody grades
_UNREADABLE = ("NO_FORMULA", "NO_ACTION", "SYNTAX", "ILLEGAL_CHARACTER")

_ALWAYS = {
    **dict.fromkeys(BROKEN, FAULT),
    "CRASH": FAULT,
    CUT_OFF: TRUNCATION,
    NO_ROOM: TRUNCATION,
    STEP_LIMIT: UNFINISHED,
}
_GENERALPOINTS = {
    "CORRECT": SOLVED,
    "RULE_MISREAD": RULE_MISREAD,
    "WRONG_VALUE": ARITHMETIC,
    "DIVISION_BY_ZERO": ARITHMETIC,
    "NO_SOLUTION": ARITHMETIC,
    "FLOAT_MISMATCH": ARITHMETIC,
    "WRONG_NUMBERS": NUMBER_MISUSE,
    "SYNTAX": SYNTAX,
    "ILLEGAL_CHARACTER": SYNTAX,
    "NO_FORMULA": SYNTAX,
    "PARTIAL_SOLUTION": SYNTAX,
    "TOO_LONG": TRUNCATION,
}
_NAVIGATION = {
    "ARRIVED": SOLVED,
    "RULE_MISREAD": RULE_MISREAD,
    "WRONG_ACTION": WRONG_WAY,
    "RECOVERED": WRONG_WAY,
    "ASTRAY": WRONG_WAY,
    "NO_WAY": WRONG_WAY,
    "STOPPED_SHORT": WRONG_WAY,
    "IMAGINED_INTERSECTION": OBSERVATION,
    "MISSED_INTERSECTION": OBSERVATION,
    "ILLEGAL_ACTION": ILLEGAL_ACTION,
    "NO_ACTION": SYNTAX,
    "TOO_LONG": TRUNCATION,
    "CORRECT": UNFINISHED,  # every step was right as far as it went, but the context was full
}
CAUSES: Mapping[str, Mapping[str, str]] = {
    "generalpoints": {**_ALWAYS, **_GENERALPOINTS},
    "navigation": {**_ALWAYS, **_NAVIGATION},
}


@dataclass(frozen=True)
class Causes:
    """How the episodes of one arm on one variant at one point ended, pooled over seeds."""

    arm: str
    variant: str
    share: float
    shares: Mapping[str, float]  # by cause, of all episodes, in the order of ORDER; they sum to 1
    failures: int
    memorization: (
        Interval | None
    )  # share of the failures that are the trained rule applied; None without failures


def last_outcome(trajectory: Trajectory) -> str:
    """The outcome for an Evaluation: of the last graded turn, or one of BROKEN, CUT_OFF or NO_ROOM."""
    if trajectory.ending.broken:
        return trajectory.ending.name
    if not trajectory.turns:
        return NO_ROOM
    graded = [turn for turn in trajectory.turns if turn.outcome != STEP_LIMIT] or trajectory.turns
    last = graded[-1]
    cut = last.finish is Finish.LENGTH and last.outcome in _UNREADABLE
    return CUT_OFF if cut else last.outcome


def cause_of(env: str, outcome: str) -> str:
    """The cause that an outcome belongs to; what is unknown here stands under its own name."""
    return CAUSES.get(env, _ALWAYS).get(outcome, outcome)


def causes(comparison: Comparison) -> list[Causes]:
    """Of every arm (INIT too), variant and share that at least one seed has, in that order."""
    return [_causes(comparison.env, key, seeds) for key, seeds in by_key(comparison).items()]


def _causes(env: str, key: Key, seeds: BySeed) -> Causes:
    found = Counter(each for evaluation in seeds.values() for each in _of(env, evaluation))
    failed_SN = 1 - table(seeds, lambda evaluation: evaluation.successes)
    misread_SN = table(seeds, lambda evaluation: (each == RULE_MISREAD for each in _of(env, evaluation)))
    shares = {cause: found[cause] / found.total() for cause in sorted(found, key=_rank)}
    return Causes(*key, shares, int(failed_SN.sum()), ratio(misread_SN, failed_SN, instances_of(seeds)))


def _of(env: str, evaluation: Evaluation) -> list[str]:
    pairs = zip(evaluation.successes, evaluation.outcomes, strict=True)
    return [SOLVED if success else cause_of(env, outcome) for success, outcome in pairs]


def _rank(cause: str) -> tuple[int, str]:
    """Unknown causes come last, by name."""
    return (ORDER.index(cause) if cause in ORDER else len(ORDER)), cause
