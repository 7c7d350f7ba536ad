"""Success rates and differences, with intervals that hold for few seeds (docs/comparison.md, Statistics).

Comparison ─▶ by_key ─▶ tables of seeds by instances ─▶ Success   per arm, variant, share
                                      └ paired ───────▶ Difference per arm, baseline, variant, share
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rlpost.compare.design.types import (
    Comparison,
    Evaluation,
    baselines_of,
    is_start,
    row_name_of,
    settings_name_of,
    with_settings_name,
)
from rlpost.compare.statistics.evaluations import BySeed, Key, by_key
from rlpost.compare.statistics.intervals import (
    LEVEL,
    Floats,
    Interval,
    Mean,
    by_instance,
    difference,
    ratio,
)


@dataclass(frozen=True)
class Success:
    """How often one arm solves one variant at one point, pooled over its seeds."""

    arm: str
    variant: str
    share: float  # share of the compute budget
    rate: Interval  # 95%: Wilson, on the effective number of trials of the seeds and instances
    solved: int
    episodes: int  # seeds x instances
    distinct: int  # distinct instances: a deal that was drawn twice counts once
    seeds: tuple[int, ...]  # the seeds in the mean
    missing: tuple[int, ...]  # seeds of the comparison that failed or have not run
    per_seed: tuple[float, ...]  # success rates in the order of `seeds`
    by_turn: tuple[float, ...]  # entry k: share solved within k + 1 verification turns


@dataclass(frozen=True)
class Difference:
    """`arm - baseline` on one variant at one point, paired over seeds and instances."""

    arm: str
    baseline: str  # a start (at its only point), or another arm (at the same share); see `contrasts`
    variant: str
    share: float
    estimate: Interval  # 95%, of this difference alone
    simultaneous: Interval  # 95%, for all variants at once (Bonferroni)
    p: float  # two-sided p-value of no difference
    # Corrected for the number of variants (Bonferroni): below 5% if and only if `simultaneous` excludes zero.
    p_corrected: float
    # The paired seeds. With one seed the intervals cover the instances only.
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]  # seeds that miss one of the two
    per_seed: tuple[float, ...]
    wins: int  # pairs that only the arm solved
    losses: int  # pairs that only the baseline solved


def successes(comparison: Comparison) -> list[Success]:
    """The success of every arm or start, variant and share that at least one seed has, sorted by these three."""
    return [_success(comparison, key, seeds) for key, seeds in by_key(comparison).items()]


def _success(comparison: Comparison, key: Key, seeds: BySeed) -> Success:
    solved_SN = table(seeds, lambda evaluation: evaluation.successes)
    return Success(
        *key,
        rate_of(seeds),
        int(solved_SN.sum()),
        solved_SN.size,
        len(set(instances_of(seeds))),
        tuple(seeds),
        tuple(seed for seed in comparison.seeds if seed not in seeds),
        tuple(solved_SN.mean(axis=1).tolist()),
        _by_turn(table(seeds, lambda evaluation: evaluation.solved_at)),
    )


def rate_of(seeds: BySeed) -> Interval:
    """The share of instances that are solved, with its 95% interval."""
    solved_SN = table(seeds, lambda evaluation: evaluation.successes)
    rate = ratio(solved_SN, np.ones_like(solved_SN), instances_of(seeds))
    assert rate is not None, "an evaluation has instances"
    return rate


def _by_turn(solved_at_SN: Floats) -> tuple[float, ...]:
    turns = range(1, max(1, int(solved_at_SN.max())) + 1)
    return tuple(float(np.mean((solved_at_SN >= 1) & (solved_at_SN <= turn))) for turn in turns)


def table(seeds: BySeed, field: Callable[[Evaluation], Iterable[float]]) -> Floats:
    """One field of every seed's evaluation, as (S, N)."""
    return np.array([list(field(evaluation)) for evaluation in seeds.values()], dtype=np.float64)


def instances_of(seeds: BySeed) -> tuple[str, ...]:
    return next(iter(seeds.values())).instances


def differences(comparison: Comparison) -> list[Difference]:
    """Every contrast on each variant at each share that has at least one pair.

    The variants of one contrast at one share are corrected together by Bonferroni. Bonferroni gives intervals as well
    as p-values, so the direction, the interval and the p-value of a difference always agree.

    Raises ComparisonError if two evaluations of a variant hold different instances.
    """
    evaluations = by_key(comparison)
    shares = sorted({share for arm, _, share in evaluations if not is_start(arm)})
    return [
        each
        for contrast in contrasts(comparison)
        for share in shares
        for variant in comparison.variants
        for each in _paired(comparison, evaluations, contrast, variant, share)
    ]


def contrasts(comparison: Comparison) -> list[tuple[str, str]]:
    """(arm, baseline): every arm against its start, every start against the first, every arm against SFT and the arm
    that it varies under the same settings (`baselines_of`) and against itself under the first settings; then those of
    `compare.contrasts`."""
    arms = comparison.arms
    first = settings_name_of(arms[0]) if arms else None
    within = [(arm, other) for arm in arms for other in baselines_of(arm)]
    across = [(arm, with_settings_name(row_name_of(arm), first)) for arm in arms]
    others = [(arm, other) for arm, other in within + across if arm != other and other in arms]
    starts = [(start, comparison.starts[0]) for start in comparison.starts[1:]]
    return (
        [(arm, comparison.start_of(arm)) for arm in arms]
        + starts
        + list(dict.fromkeys((*others, *comparison.contrasts)))
    )


def _paired(
    comparison: Comparison,
    evaluations: dict[Key, BySeed],
    contrast: tuple[str, str],
    variant: str,
    share: float,
) -> Iterator[Difference]:
    """The difference; None if there is no pair."""
    arm, baseline = contrast
    mine, others = (_at(evaluations, name, variant, share) for name in contrast)
    if mine.keys() & others.keys():
        yield _difference(comparison, (arm, variant, share), baseline, mine, others)


def _at(evaluations: dict[Key, BySeed], arm: str, variant: str, share: float) -> BySeed:
    """The arm at that share, a start at its only point; empty if no seed was evaluated there."""
    if not is_start(arm):
        return evaluations.get((arm, variant, share), {})
    return next((seeds for (name, on, _), seeds in evaluations.items() if (name, on) == (arm, variant)), {})


def _difference(comparison: Comparison, key: Key, baseline: str, mine: BySeed, others: BySeed) -> Difference:
    arm, variant, share = key
    paired = tuple(seed for seed in comparison.seeds if seed in mine and seed in others)
    solved = [table({seed: each[seed] for seed in paired}, lambda e: e.successes) for each in (mine, others)]
    change_SN = solved[0] - solved[1]
    change_SC = by_instance(change_SN, instances_of(mine))
    mean, value, variants = difference(change_SC), float(change_SN.mean()), len(comparison.variants)
    return Difference(
        arm,
        baseline,
        variant,
        share,
        Interval(value, *_ends(mean, LEVEL)),
        Interval(value, *_ends(mean, 1 - (1 - LEVEL) / variants)),
        mean.p,
        min(1.0, variants * mean.p),
        paired,
        tuple(seed for seed in comparison.seeds if seed not in paired),
        tuple(change_SN.mean(axis=1).tolist()),
        int((change_SN > 0).sum()),
        int((change_SN < 0).sum()),
    )


def _ends(mean: Mean, level: float) -> tuple[float, float]:
    """The ends of the interval, clipped to -1 and 1, the limits of a difference of shares."""
    low, high = mean.interval(level)
    return max(low, -1.0), min(high, 1.0)
