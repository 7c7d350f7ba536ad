"""Coverage of a comparison's intervals: simulated comparisons whose true difference is known.

    python -m benchmarks.coverage

Outcomes follow a probit model of seeds, instances and random sampling. For each truth it prints the coverage and the
mean width of the interval that a comparison reports, beside those of other methods, from the same simulated tables.

Shapes: S seeds, N instances, K kinds of instances with equal values, R resamples.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, ttest_1samp

from rlpost.compare.statistics.intervals import LEVEL, Floats, difference

RESAMPLES = 500
LEVELS = ((0.30, 0.30), (0.40, 0.30), (0.05, 0.03))  # success rates of arm and baseline
SEED_SDS = (0.0, 0.15, 0.4)  # 0, 3.6 and 9 points at a success rate of 30%


@dataclass(frozen=True)
class Truth:
    """`arm` and `baseline` succeed with these probabilities, over all seeds, instances and random draws.

    Standard deviations are those of the latent normal, in which the sampling of answers has 1: seeds (separately for
    each arm), the difficulty of an instance (the same for both) and how well an instance suits an arm.
    """

    seeds: int
    arm: float
    baseline: float
    seed_sd: float
    difficulty_sd: float = 1.0
    suits_sd: float = 0.3
    instances: int = 200


def play(truth: Truth, rng: np.random.Generator) -> Floats:
    """The differences of paired outcomes, (S, N)."""
    S, N = truth.seeds, truth.instances
    scale = (1 + truth.seed_sd**2 + truth.difficulty_sd**2 + truth.suits_sd**2) ** 0.5
    difficulty_N = truth.difficulty_sd * rng.standard_normal(N)
    solved = []
    for chance in (truth.arm, truth.baseline):
        latent_SN = norm.ppf(chance) * scale + difficulty_N + rng.standard_normal((S, N))
        latent_SN += truth.seed_sd * rng.standard_normal((S, 1)) + truth.suits_sd * rng.standard_normal(N)
        solved.append(latent_SN > 0)
    differences_SN: Floats = solved[0].astype(float) - solved[1]
    return differences_SN


def coverage(truth: Truth, simulations: int, rng: np.random.Generator) -> tuple[float, float]:
    """The share of simulated comparisons whose 95% interval contains the true difference, and its mean width."""
    return _covered(truth, [difference(play(truth, rng)).interval() for _ in range(simulations)])


def _covered(truth: Truth, intervals: list[tuple[float, float]]) -> tuple[float, float]:
    ends = np.array(intervals)
    true = truth.arm - truth.baseline
    held = (ends[:, 0] <= true) & (true <= ends[:, 1])
    return float(held.mean()), float(np.mean(ends[:, 1] - ends[:, 0]))


def bootstrap(values_SN: Floats, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval of the mean. Seeds, and then instances, are drawn with replacement (Owen, 2007).

    An instance is drawn for all seeds together, because all were evaluated on it. Instances with the same values (K
    kinds) are drawn together, which gives the same result in a fraction of the time.
    """
    rng = np.random.default_rng(seed)
    S, N = values_SN.shape
    kinds_SK, counts_K = np.unique(values_SN, axis=1, return_counts=True)
    seeds_RS = rng.multinomial(S, np.full(S, 1 / S), size=resamples)
    instances_RK = rng.multinomial(N, counts_K / N, size=resamples)
    means_R = ((seeds_RS @ kinds_SK) * instances_RK).sum(axis=1) / (S * N)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _nested(values_SN: Floats, seed: int) -> tuple[float, float]:
    """Percentile interval. Seeds are drawn, and then instances separately for each drawn seed."""
    rng = np.random.default_rng(seed)
    S, N = values_SN.shape
    drawn_RS = rng.integers(S, size=(RESAMPLES, S))
    shares_S3 = np.stack([(values_SN == value).mean(axis=1) for value in (-1, 0, 1)], axis=1)
    counts_RS3 = rng.multinomial(N, shares_S3[drawn_RS])
    means_R = (counts_RS3[..., 2] - counts_RS3[..., 0]).sum(axis=1) / (S * N)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return float(low), float(high)


def _seeds_only(values_SN: Floats) -> tuple[float, float]:
    """A t interval over the means of the seeds."""
    if len(values_SN) == 1:
        return -np.inf, np.inf  # one seed gives no information about other seeds
    low, high = ttest_1samp(values_SN.mean(axis=1), 0).confidence_interval()
    return float(low), float(high)


METHODS: dict[str, Callable[[Floats, int], tuple[float, float]]] = {
    "reported": lambda values_SN, seed: difference(values_SN).interval(),
    "bootstrap, crossed": lambda values_SN, seed: bootstrap(values_SN, seed),
    "bootstrap, nested": _nested,
    "t over seeds": lambda values_SN, seed: _seeds_only(values_SN),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    print("coverage of 95% intervals (mean width in points)", *METHODS, sep=" | ")
    for seeds, (arm, baseline), seed_sd in itertools.product((1, 3, 5), LEVELS, SEED_SDS):
        truth = Truth(seeds, arm, baseline, seed_sd)
        rng = np.random.default_rng(0)
        tables = [play(truth, rng) for _ in range(simulations)]
        told = []
        for method in METHODS.values():
            covered, width = _covered(truth, [method(table, number) for number, table in enumerate(tables)])
            told.append(f"{100 * covered:.1f}% ({100 * width:.1f})")
        print(f"{seeds} seeds, {arm:.0%} - {baseline:.0%}, seed sd {seed_sd}", *told, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
