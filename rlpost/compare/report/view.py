"""The comparison with the lookups that the report needs, and the report's parts: sections with pictures and tables."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.compare.design.types import Comparison, Point
from rlpost.compare.report.findings import Findings
from rlpost.compare.statistics.directions import ContrastResult
from rlpost.compare.statistics.estimates import Success
from rlpost.compare.statistics.intervals import Interval
from rlpost.compare.statistics.spectra import SeedMean
from rlpost.pages.images import Image
from rlpost.record.summary import MISSING


@dataclass(frozen=True)
class Table:
    """`rows` are texts, unescaped. Text after a line break is shown in small print."""

    head: tuple[str, ...]  # all empty: the table has no heading
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 0  # how many columns at the right hold numbers


@dataclass(frozen=True)
class Section:
    title: str
    reading: str  # how to read it, in a sentence or two
    pictures: tuple[Image, ...] = ()
    tables: tuple[Table, ...] = ()
    grid: bool = False  # whether the pictures stand side by side
    folded: bool = False  # whether the section is closed until the reader opens it


class View:
    """A comparison and its findings, with the lookups that the report needs."""

    def __init__(self, comparison: Comparison, findings: Findings) -> None:
        self.comparison, self.findings = comparison, findings
        names = comparison.variants
        self.variants = sorted(names, key=lambda v: names[v].role.place)
        self.arms = (*comparison.starts, *comparison.arms)
        self.has_steps = any(any(self.step_accuracies(success)) for success in findings.successes)
        self._successes = {(s.arm, s.variant, s.share): s for s in findings.successes}

    def role(self, variant: str) -> str:
        """How the variant relates to training, as shown in the report."""
        return self.comparison.variants[variant].role.value

    def heading(self, variant: str) -> str:
        return f"{variant} ({self.role(variant)})"

    def shares(self, arm: str, variant: str) -> list[float]:
        """The shares of the budget at which some seed was evaluated, in order."""
        return sorted(share for a, v, share in self._successes if (a, v) == (arm, variant))

    def at(self, arm: str, variant: str, share: float) -> Success:
        return self._successes[arm, variant, share]

    def last(self, arm: str, variant: str) -> Success | None:
        """The success at the end of the budget, or at the last point that a seed reached; None without evaluations."""
        shares = self.shares(arm, variant)
        return self.at(arm, variant, shares[-1]) if shares else None

    def rows(self, variant: str) -> list[ContrastResult]:
        """The contrasts on one variant."""
        return [row for row in self.findings.contrasts if row.variant == variant]

    def spent(self, arm: str, share: float, unit: str) -> list[float]:
        """Compute spent since init, by seed."""
        return [float(getattr(point.compute, unit)) for point in self._points(arm, share).values()]

    def counts(self, unit: str) -> bool:
        """Whether every record has counted this unit; earlier versions counted no rollouts."""
        points = (point for cell in self.comparison.cells for point in cell.points)
        return all(getattr(point.compute, unit) is not None for point in points)

    def step_accuracies(self, success: Success) -> list[float]:
        """The step accuracies by seed, for the seeds that have one."""
        points = self._points(success.arm, success.share)
        every = [points[seed].evaluations[success.variant].step_accuracy for seed in success.seeds]
        return [accuracy for accuracy in every if accuracy is not None]

    def _points(self, arm: str, share: float) -> dict[int, Point]:
        cells = (cell for cell in self.comparison.cells if cell.arm == arm)
        return {cell.seed: point for cell in cells for point in cell.points if point.share == share}


def percent(interval: Interval) -> str:
    """A share with its interval, both in percent: 22.5% [18.1, 27.9]."""
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def told(mean: SeedMean | None, form: str) -> str:
    """A mean over seeds with its interval, and the number of seeds, in a table's cell."""
    if mean is None:
        return MISSING
    if mean.interval is None:
        return f"{mean.value:{form}}\n1 seed"
    return (
        f"{mean.value:{form}} [{mean.interval.low:{form}}, {mean.interval.high:{form}}]\n{mean.seeds} seeds"
    )
