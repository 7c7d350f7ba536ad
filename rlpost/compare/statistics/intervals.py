"""Intervals for the mean of a table of seeds by instances, both random and crossed (see docs/comparison.md).

Shapes: S seeds, N evaluated instances, C distinct ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A share or a difference of shares (0.05 is 5 points), with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """An estimate with its standard error and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        half = float(stats.t.isf((1 - level) / 2, self.freedom)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference; 1 if the standard error is zero."""
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom)) if self.error else 1.0


def by_instance(values_SN: Floats, instances: Sequence[str]) -> Floats:
    """The same table with one column per distinct instance, (S, C), so that a deal drawn twice counts as one draw.

    Row means do not change. Without repetitions the columns are those of `values_SN`, sorted by name.
    """
    names, cluster_N = np.unique(np.asarray(instances), return_inverse=True)
    mean = values_SN.mean()
    sums_SC = np.zeros((len(values_SN), len(names)))
    np.add.at(sums_SC.T, cluster_N, (values_SN - mean).T)
    spread_SC: Floats = mean + sums_SC * len(names) / len(instances)
    return spread_SC


def crossed_mean(values_SC: Floats) -> Mean:
    """Mean of a two-way random-effects table. Its error comes from the mean squares of seeds, instances and residual.

    With one seed the error is that of the instances alone. The mean square of seeds is at least that of the residual,
    so that seeds that agree by chance do not shrink the error. Degrees of freedom: Hillis (2007), for readers by cases.
    """
    S, C = values_SC.shape
    mean = values_SC.mean()
    rows_S, columns_C = values_SC.mean(axis=1), values_SC.mean(axis=0)
    instances = S * _square(columns_C - mean) / max(C - 1, 1)
    if S == 1:
        return Mean(float(mean), float(np.sqrt(instances / C)), float(max(C - 1, 1)))
    rest = _square(values_SC - rows_S[:, None] - columns_C + mean) / max((S - 1) * (C - 1), 1)
    seeds = max(C * _square(rows_S - mean) / (S - 1), rest)
    total = seeds + max(instances - rest, 0.0)
    freedom = (S - 1) * (total / seeds) ** 2 if seeds else np.inf
    return Mean(float(mean), float(np.sqrt(total / (S * C))), float(freedom))


def _square(values: Floats) -> float:
    return float(np.square(values).sum())


def difference(differences_SC: Floats) -> Mean:
    """The mean of paired outcomes in -1, 0, 1, with a pseudo-instance added for either side (Bonett & Price, 2012).

    They keep the error above zero if no pair differs, and draw the middle of the interval a little towards zero.
    """
    ones_S1 = np.ones((len(differences_SC), 1))
    return crossed_mean(np.hstack([differences_SC, ones_S1, -ones_S1]))


def ratio(hits_SN: Floats, among_SN: Floats, instances: Sequence[str]) -> Interval | None:
    """The share of `among` that are `hits`, with Wilson's 95% interval on the effective number of trials.

    The effective number of trials is that of a simple random sample with the table's error (Kish; Korn & Graubard,
    1998, for the degrees of freedom). With one seed, or an error of 0 (a share of 0 or 1), it is the number of
    instances. None if `among` is empty.
    """
    among = float(among_SN.sum())
    if among == 0:
        return None
    share = float(hits_SN.sum()) / among
    distinct = len(np.unique(np.asarray(instances)[among_SN.any(axis=0)]))
    trials = float(distinct)
    if len(hits_SN) > 1 and 0 < share < 1:
        linear_SN = (hits_SN - share * among_SN) / among_SN.mean()
        mean = crossed_mean(by_instance(linear_SN, instances))
        trials = min(among, _worth(share, mean)) if mean.error > 0 else trials
    return Interval(share, *wilson(share, trials))


def _worth(share: float, mean: Mean) -> float:
    """The effective number of trials: a simple sample of that size has an interval as wide."""
    normal = stats.norm.isf((1 - LEVEL) / 2) / stats.t.isf((1 - LEVEL) / 2, mean.freedom)
    return float(share * (1 - share) / mean.error**2 * normal**2)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """95% score interval of a share (Wilson, 1927); `trials` need not be whole."""
    from statsmodels.stats.proportion import proportion_confint  # two seconds to import

    low, high = proportion_confint(share * trials, trials, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)
