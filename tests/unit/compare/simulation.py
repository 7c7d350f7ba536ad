"""Comparisons whose true difference is known: a probit model of seeds, instances and dice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from rlpost.compare.intervals import Floats, difference


@dataclass(frozen=True)
class Truth:
    """`arm` and `baseline` succeed with these probabilities, over all seeds, instances and dice.

    Standard deviations are of the latent normal, where the dice have 1: seeds (of each arm by itself), how hard an
    instance is (for both alike) and how it suits an arm.
    """

    seeds: int
    arm: float
    baseline: float
    seed_sd: float
    difficulty_sd: float = 1.0
    suits_sd: float = 0.3
    instances: int = 200


def play(truth: Truth, rng: np.random.Generator) -> Floats:
    """Differences of paired outcomes, (S, N)."""
    S, N = truth.seeds, truth.instances
    scale = (1 + truth.seed_sd**2 + truth.difficulty_sd**2 + truth.suits_sd**2) ** 0.5
    difficulty_N = truth.difficulty_sd * rng.standard_normal(N)
    solved = []
    for chance in (truth.arm, truth.baseline):
        latent_SN = norm.ppf(chance) * scale + difficulty_N + rng.standard_normal((S, N))
        latent_SN += truth.seed_sd * rng.standard_normal((S, 1)) + truth.suits_sd * rng.standard_normal(N)
        solved.append(latent_SN > 0)
    return solved[0].astype(float) - solved[1]


def coverage(truth: Truth, simulations: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of simulated comparisons whose 95% interval holds the true difference, and its mean width."""
    ends = np.array([difference(play(truth, rng)).interval() for _ in range(simulations)])
    true = truth.arm - truth.baseline
    held = (ends[:, 0] <= true) & (true <= ends[:, 1])
    return float(held.mean()), float(np.mean(ends[:, 1] - ends[:, 0]))
