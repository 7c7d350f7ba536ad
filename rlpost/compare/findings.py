"""What a comparison found, in numbers and in sentences that claim no more than their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlpost.compare.causes import Causes
from rlpost.compare.statistics import Difference, Success
from rlpost.compare.types import Comparison


class Verdict(StrEnum):
    """What a simultaneous 95% interval says of a difference."""

    UP = "up"  # the whole interval lies above zero
    DOWN = "down"  # below zero
    UNCLEAR = "unclear"  # it holds zero
    UNKNOWN = "unknown"  # there is no pair to compare


@dataclass(frozen=True)
class Row:
    """The verdict table: one variant and one contrast at the end of the budget."""

    variant: str
    held_out: bool
    contrast: str  # "sft - init", "ppo - init", "ppo - sft"
    verdict: Verdict
    difference: Difference | None


@dataclass(frozen=True)
class Findings:
    """`sentences` come in the order in which a report shows them; the failed and missing cells first."""

    sentences: tuple[str, ...]
    problems: tuple[str, ...]  # the failed and missing cells, a sentence each; also the first of `sentences`
    verdicts: tuple[Row, ...]
    successes: tuple[Success, ...]
    differences: tuple[Difference, ...]
    causes: tuple[Causes, ...]


def findings(comparison: Comparison) -> Findings:
    """The answer to: did SFT memorize, did RL generalize, and how sure are we?"""
    raise NotImplementedError
