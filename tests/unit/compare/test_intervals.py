from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from benchmarks.coverage import Truth, bootstrap, coverage, play
from rlpost.compare.statistics.intervals import (
    Floats,
    Interval,
    by_instance,
    crossed_mean,
    difference,
    ratio,
    wilson,
)

NAMES = [f"deal {i}" for i in range(40)]


def _about(share: float, low: float, high: float) -> Interval:
    return Interval(share, pytest.approx(low), pytest.approx(high))  # type: ignore[arg-type]


outcomes = arrays(np.float64, (3, 40), elements=st.sampled_from([-1.0, 0.0, 1.0]))


def test_wilson_by_its_formula() -> None:
    """Wilson (1927): the roots p of (share - p)^2 = z^2 p (1 - p) / n."""
    z2 = stats.norm.isf(0.025) ** 2
    for end in wilson(0.3, 57.5):
        assert (0.3 - end) ** 2 == pytest.approx(z2 * end * (1 - end) / 57.5)
    assert wilson(0.0, 200.0)[0] == pytest.approx(0)
    assert wilson(0.0, 200.0)[1] == pytest.approx(z2 / (200 + z2))


def test_one_seed_is_bonett_and_price() -> None:
    """McNemar's variance with one pseudo-pair for either side; n - 1 for n, t for z are all the difference."""
    wins, losses, n = 30, 18, 200
    mean = difference(np.array([[1.0] * wins + [-1.0] * losses + [0.0] * (n - wins - losses)]))
    p, q, m = (wins + 1) / (n + 2), (losses + 1) / (n + 2), n + 2
    assert mean.value == pytest.approx(p - q)
    assert mean.error**2 == pytest.approx((p + q - (p - q) ** 2) / (m - 1))
    assert mean.freedom == m - 1


def test_many_seeds_on_endless_instances_are_a_t_test_of_the_seeds(rng: np.random.Generator) -> None:
    """Where the seeds' spread drowns all else."""
    values_SC = rng.normal(0, 1, (4, 1)) + rng.normal(0, 1e-3, (4, 500))
    found, expected = crossed_mean(values_SC), stats.ttest_1samp(values_SC.mean(axis=1), 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-3)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()), rel=1e-3)


def test_seeds_that_agree_are_a_t_test_of_the_instances(rng: np.random.Generator) -> None:
    """Where all seeds give the same on each instance, they count as one."""
    one_C = rng.normal(0.1, 1, 500)
    found, expected = crossed_mean(np.tile(one_C, (3, 1))), stats.ttest_1samp(one_C, 0)
    assert found.error == pytest.approx(one_C.std(ddof=1) / 500**0.5)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-2)


def test_error_is_the_two_way_analysis_of_variance(rng: np.random.Generator) -> None:
    """Against mean squares that statsmodels finds by least squares."""
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    values_SC = rng.normal(0, 1, (3, 1)) + rng.normal(0, 1, (1, 12)) + rng.normal(0, 1, (3, 12))
    seeds, instances = (each.ravel() for each in np.indices(values_SC.shape))
    data = pd.DataFrame({"y": values_SC.ravel(), "s": seeds, "c": instances})
    square = anova_lm(ols("y ~ C(s) + C(c)", data).fit())["mean_sq"]
    total = square["C(s)"] + square["C(c)"] - square["Residual"]
    found = crossed_mean(values_SC)
    assert found.error**2 == pytest.approx(total / values_SC.size)
    assert found.freedom == pytest.approx(2 * (total / square["C(s)"]) ** 2)


@settings(max_examples=50, deadline=None)
@given(outcomes, st.permutations(range(40)))
def test_properties_of_a_difference(changes_SN: Floats, order: list[int]) -> None:
    mean = difference(by_instance(changes_SN, NAMES))
    swapped = difference(by_instance(-changes_SN, NAMES))
    low, high = mean.interval()
    assert swapped.interval() == pytest.approx((-high, -low))
    assert swapped.p == pytest.approx(mean.p)
    assert (mean.p < 0.05) == (low > 0 or high < 0)
    assert low < mean.value < high
    other = difference(by_instance(changes_SN[[2, 0, 1]][:, order], [NAMES[i] for i in order]))
    assert (other.value, other.error) == pytest.approx((mean.value, mean.error))
    wider = mean.interval(0.99)
    assert wider[0] < low
    assert wider[1] > high


def test_a_deal_drawn_twice_is_one_draw(rng: np.random.Generator) -> None:
    """Every deal doubled says no more than every deal once."""
    values_SN = rng.choice([-1.0, 0.0, 1.0], (3, 40))
    once = by_instance(values_SN, NAMES)
    twice = by_instance(np.hstack([values_SN, values_SN]), NAMES * 2)
    assert twice == pytest.approx(once)
    assert once == pytest.approx(values_SN[:, np.argsort(NAMES)])
    uneven = by_instance(values_SN, [NAMES[0], *NAMES[:-1]])
    assert uneven.shape == (3, 39)
    assert uneven.mean(axis=1) == pytest.approx(values_SN.mean(axis=1))


def test_shares_of_one_seed_are_plain_wilson_and_of_agreeing_seeds_too() -> None:
    hits_1N = np.array([[1.0] * 12 + [0.0] * 28])
    assert ratio(hits_1N, np.ones((1, 40)), NAMES) == _about(0.3, *wilson(0.3, 40))
    same = ratio(np.tile(hits_1N, (3, 1)), np.ones((3, 40)), NAMES)
    assert same is not None
    assert (same.low, same.high) == pytest.approx(wilson(0.3, 40), abs=0.01)
    assert ratio(np.zeros((3, 40)), np.ones((3, 40)), NAMES) == _about(0, *wilson(0, 40))
    assert ratio(np.zeros((3, 40)), np.zeros((3, 40)), NAMES) is None


def test_a_share_among_some(rng: np.random.Generator) -> None:
    among = (rng.random((1, 40)) < 0.5).astype(float)
    n = int(among.sum())
    assert ratio(among, among, NAMES) == _about(1, *wilson(1, n))


def test_bootstrap_is_the_pigeonhole(rng: np.random.Generator) -> None:
    """Its variance is known: Owen (2007), by hand for a table of pure noise, 3/n of the cell variance in the limit."""
    values_SC = rng.normal(0, 1, (30, 40))
    low, high = bootstrap(values_SC, seed=0, resamples=20_000)
    expected = 3 * values_SC.var() / values_SC.size
    assert ((high - low) / 2 / 1.96) ** 2 == pytest.approx(expected, rel=0.12)
    assert bootstrap(values_SC, seed=0) == bootstrap(values_SC, seed=0)
    assert bootstrap(np.ones((3, 40)), seed=0) == (1, 1)


@pytest.mark.parametrize(
    ("truth", "widest"),
    [
        (Truth(seeds=3, arm=0.30, baseline=0.30, seed_sd=0.0), 0.19),
        (Truth(seeds=3, arm=0.40, baseline=0.30, seed_sd=0.3), 0.65),
        (Truth(seeds=5, arm=0.20, baseline=0.30, seed_sd=0.1), 0.16),
        (Truth(seeds=5, arm=0.05, baseline=0.03, seed_sd=0.3), 0.12),
    ],
    ids=str,
)
def test_intervals_cover_a_known_effect(truth: Truth, widest: float, rng: np.random.Generator) -> None:
    """95% of 1,000 comparisons, within three Monte Carlo errors from below; more is allowed, see docs."""
    covered, width = coverage(truth, simulations=1000, rng=rng)
    assert covered >= 0.95 - 3 * (0.95 * 0.05 / 1000) ** 0.5
    assert width < widest, "no wider than its table in docs/comparison.md has it"


def test_one_seed_covers_for_its_instances_only(rng: np.random.Generator) -> None:
    error = 3 * (0.95 * 0.05 / 1000) ** 0.5
    same_seed = Truth(seeds=1, arm=0.4, baseline=0.3, seed_sd=0.0)
    assert coverage(same_seed, 1000, rng)[0] == pytest.approx(0.95, abs=error)
    assert coverage(Truth(seeds=1, arm=0.4, baseline=0.3, seed_sd=0.3), 1000, rng)[0] < 0.8


def test_a_null_difference_is_found_as_often_as_it_may(rng: np.random.Generator) -> None:
    truth = Truth(seeds=3, arm=0.3, baseline=0.3, seed_sd=0.3)
    small = [difference(play(truth, rng)).p < 0.05 for _ in range(1000)]
    assert np.mean(small) <= 0.05 + 3 * (0.95 * 0.05 / 1000) ** 0.5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_share_of_one_deal_drawn_twice_is_of_one_trial() -> None:
    hits_SN = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = ratio(hits_SN, np.ones_like(hits_SN), ["deal", "deal"])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 1))
