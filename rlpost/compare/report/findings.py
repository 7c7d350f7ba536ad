"""What a comparison found: numbers, and sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlpost.compare.design.types import Comparison
from rlpost.compare.report import sentences
from rlpost.compare.report.sentences import Finding
from rlpost.compare.statistics.causes import Causes, causes
from rlpost.compare.statistics.directions import ContrastResult, Direction, direction_of
from rlpost.compare.statistics.estimates import Difference, Success, contrasts, differences, successes


@dataclass(frozen=True)
class Findings:
    problems: tuple[str, ...]  # failed and missing cells, then what each contrast lacks because of them
    answers: tuple[Finding, ...]  # the questions' answers, then remarks on them
    contrasts: tuple[ContrastResult, ...]  # every contrast on every variant, also those without a pair
    successes: tuple[Success, ...]
    differences: tuple[Difference, ...]
    causes: tuple[Causes, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every sentence of the findings, in the order of the report."""
        return (*self.problems, *map(str, self.answers))


def findings(comparison: Comparison) -> Findings:
    """The answer to: did SFT memorize, did RL generalize, and how sure are we?

    Raises ComparisonError if the records contradict each other.
    """
    scored, changed, why = successes(comparison), differences(comparison), causes(comparison)
    rows = tuple(_rows(comparison, changed))
    problems = tuple(sentences.problems(comparison, rows))
    ends = [each for each in scored if _is_last(each, scored)]
    told = (
        *sentences.answers(comparison, rows),
        *sentences.certainty(comparison, rows, ends),
        *sentences.memorization(comparison, [each for each in why if _is_last(each, why)]),
        *sentences.fake_rules(comparison, ends),
        *sentences.turns(comparison, ends),
    )
    return Findings(problems, told, rows, tuple(scored), tuple(changed), tuple(why))


def _is_last(each: Success | Causes, among: Sequence[Success | Causes]) -> bool:
    """Whether the cell's point is the last of its arm. A start has one point only."""
    return each.share == max(other.share for other in among if other.arm == each.arm)


def _rows(comparison: Comparison, differences: Sequence[Difference]) -> Iterator[ContrastResult]:
    """Every contrast on every variant at the last share."""
    last = max((each.share for each in differences), default=None)
    ends = {(each.arm, each.baseline, each.variant): each for each in differences if each.share == last}
    for arm, baseline in contrasts(comparison):
        for variant, info in comparison.variants.items():
            each = ends.get((arm, baseline, variant))
            direction = Direction.UNKNOWN if each is None else direction_of(each.simultaneous)
            yield ContrastResult(variant, info.role, arm, baseline, direction, each)
