"""Success and differences of a comparison, with intervals that hold for few seeds.

Every evaluation is a table of seeds by instances: S training seeds (random), n instances (random, the same for every
seed), so the two are crossed, not nested. A mean over the table varies with the seeds, with the instances and with
what is left of a cell; docs/comparison.md derives the interval and shows its measured coverage.

Shapes: S seeds, N instances; values_SN, hits_SN, among_SN.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.compare.types import Comparison


@dataclass(frozen=True)
class Interval:
    """A share or a difference of shares (0.05 is 5 points) with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Success:
    """How often one arm solves one variant at one point, pooled over its seeds."""

    arm: str
    variant: str
    share: float  # of the compute budget
    rate: Interval  # 95%: Wilson, on as many trials as the seeds and instances are worth
    solved: int
    episodes: int  # seeds x instances
    seeds: tuple[int, ...]  # that are in the mean
    missing: tuple[int, ...]  # seeds of the comparison that are not: failed or not run
    per_seed: tuple[float, ...]  # in the order of `seeds`
    by_turn: tuple[float, ...]  # entry k: share solved within k + 1 verification turns


@dataclass(frozen=True)
class Difference:
    """`arm - baseline` on one variant at one point, paired over seeds and instances."""

    arm: str
    baseline: str  # INIT or sft
    variant: str
    share: float
    estimate: Interval  # 95%, of this difference alone
    simultaneous: Interval  # 95% for all variants at once (Bonferroni)
    bootstrap: Interval  # 95% percentile interval, seeds then instances resampled: for orientation
    p: float  # two-sided, of no difference
    p_holm: float  # the same, corrected for the number of variants
    seeds: tuple[int, ...]  # that are paired; of one seed alone the interval speaks of the instances only
    left_out: tuple[int, ...]  # seeds of which one of the two is missing
    per_seed: tuple[float, ...]
    wins: int  # pairs that only the arm solved
    losses: int  # pairs that only the baseline solved


def successes(comparison: Comparison) -> list[Success]:
    """Of every arm (INIT too), variant and share that at least one seed has, in that order."""
    raise NotImplementedError


def differences(comparison: Comparison) -> list[Difference]:
    """Every arm - INIT, and every other arm - sft, on each variant at each share; those without a pair are not there.

    Raises ComparisonError where two evaluations of a variant hold different instances.
    """
    raise NotImplementedError


def needed_instances(
    points: float = 5.0, seeds: int = 3, discordant: float = 0.3, seed_sd: float = 0.0, power: float = 0.8
) -> int:
    """How many instances make a difference of `points` percentage points visible at 5%, two-sided, with `power`."""
    raise NotImplementedError
