"""A comparison as the report looks at it, and what the report is made of: sections with pictures and tables."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.compare.design.types import INIT, Comparison, Point
from rlpost.compare.report.findings import Findings
from rlpost.compare.statistics.directions import ContrastResult
from rlpost.compare.statistics.estimates import Success
from rlpost.compare.statistics.intervals import Interval
from rlpost.pages.images import Image


@dataclass(frozen=True)
class Table:
    """`rows` are texts, unescaped; a line break in one begins what is said in small print."""

    head: tuple[str, ...]  # all empty: the table has no heading
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 0  # so many columns at the right hold numbers


@dataclass(frozen=True)
class Section:
    title: str
    reading: str  # how to read it, in a sentence or two
    pictures: tuple[Image, ...] = ()
    tables: tuple[Table, ...] = ()
    grid: bool = False  # pictures stand side by side
    folded: bool = False  # to be opened by those who want to know


class View:
    """A comparison and what was found of it, looked up the way the report shows it."""

    def __init__(self, comparison: Comparison, findings: Findings) -> None:
        self.comparison, self.findings = comparison, findings
        names = comparison.variants
        self.variants = sorted(names, key=lambda v: names[v].role.place)
        self.arms = (INIT, *comparison.arms)
        self.has_steps = any(any(self.step_accuracies(success)) for success in findings.successes)
        self._successes = {(s.arm, s.variant, s.share): s for s in findings.successes}

    def role(self, variant: str) -> str:
        """What a rule was to the arms."""
        return self.comparison.variants[variant].role.value

    def heading(self, variant: str) -> str:
        return f"{variant} ({self.role(variant)})"

    def shares(self, arm: str, variant: str) -> list[float]:
        """The points of the budget at which some seed was scored, in order."""
        return sorted(share for a, v, share in self._successes if (a, v) == (arm, variant))

    def at(self, arm: str, variant: str, share: float) -> Success:
        return self._successes[arm, variant, share]

    def last(self, arm: str, variant: str) -> Success | None:
        """At the end of the budget, or as far as any seed got; None where none was scored."""
        shares = self.shares(arm, variant)
        return self.at(arm, variant, shares[-1]) if shares else None

    def rows(self, variant: str) -> list[ContrastResult]:
        """The directions on a rule."""
        return [row for row in self.findings.contrasts if row.variant == variant]

    def spent(self, arm: str, share: float, unit: str) -> list[float]:
        """By seed, since init."""
        return [float(getattr(point.compute, unit)) for point in self._points(arm, share).values()]

    def step_accuracies(self, success: Success) -> list[float]:
        """By seed, of those that have one."""
        points = self._points(success.arm, success.share)
        every = [points[seed].evaluations[success.variant].step_accuracy for seed in success.seeds]
        return [accuracy for accuracy in every if accuracy is not None]

    def _points(self, arm: str, share: float) -> dict[int, Point]:
        cells = (cell for cell in self.comparison.cells if cell.arm == arm)
        return {cell.seed: point for cell in cells for point in cell.points if point.share == share}


def percent(interval: Interval) -> str:
    """22.5% [18.1, 27.9], the interval in percent too."""
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
