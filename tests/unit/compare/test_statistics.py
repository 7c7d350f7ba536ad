from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from rlpost.compare.design.types import INIT
from rlpost.compare.statistics.estimates import Difference, differences, needed_instances, successes
from rlpost.compare.statistics.intervals import Interval, difference, wilson
from rlpost.errors import ComparisonError
from tests.unit.compare.comparisons import comparison, done, evaluation, failed, missing, of_tables

tables = arrays(np.bool_, (3, 12))


def test_success_of_one_seed_by_hand() -> None:
    (found,) = successes(of_tables({INIT: {"faces_10": [[1, 1, 0, 0, 0]]}}))
    assert (found.arm, found.variant, found.share) == (INIT, "faces_10", 0.0)
    assert (found.solved, found.episodes, found.per_seed) == (2, 5, (0.4,))
    assert (found.rate.low, found.rate.high) == pytest.approx(wilson(0.4, 5))


def test_success_by_verification_turn() -> None:
    scored = evaluation([1, 1, 1, 0], solved_at=(1, 3, 3, 0))
    (found,) = successes(comparison([done(INIT, 0, {0.0: {"v": scored}})], [0], ["v"]))
    assert found.by_turn == (0.25, 0.25, 0.75)


def test_a_mean_over_fewer_seeds_says_so() -> None:
    cells = [
        done(INIT, 0, {0.0: {"v": evaluation([0, 0])}}),
        done(INIT, 2, {0.0: {"v": evaluation([1, 1])}}),
        failed(INIT, 1),
        done("sft", 0, {1.0: {"v": evaluation([1, 0])}}),
        done("sft", 1, {1.0: {"v": evaluation([1, 1])}}),
        missing("sft", 2),
        done("ppo", 1, {1.0: {"v": evaluation([0, 0])}}),
    ]
    record = comparison(cells, [0, 1, 2], ["v"])
    by_arm = {each.arm: each for each in successes(record)}
    assert (by_arm[INIT].seeds, by_arm[INIT].missing) == ((0, 2), (1,))
    assert (by_arm["sft"].seeds, by_arm["sft"].missing) == ((0, 1), (2,))
    by_contrast = {(each.arm, each.baseline): each for each in differences(record)}
    assert by_contrast.keys() == {("sft", INIT), ("ppo", "sft")}  # ppo - init has no seed in common
    assert by_contrast["sft", INIT].seeds == (0,)
    assert by_contrast["sft", INIT].left_out == (1, 2)
    assert by_contrast["sft", INIT].per_seed == (0.5,)
    assert by_contrast["ppo", "sft"].estimate.value == -1


def test_every_share_has_its_differences() -> None:
    points = {0.5: {"v": evaluation([1, 0])}, 1.0: {"v": evaluation([1, 1])}}
    cells = [done(INIT, 0, {0.0: {"v": evaluation([0, 0])}}), done("sft", 0, points), done("ppo", 0, points)]
    found = {
        (d.arm, d.baseline, d.share): d.estimate.value for d in differences(comparison(cells, [0], ["v"]))
    }
    assert found == {
        ("sft", INIT, 0.5): 0.5,
        ("sft", INIT, 1.0): 1.0,
        ("ppo", INIT, 0.5): 0.5,
        ("ppo", INIT, 1.0): 1.0,
        ("ppo", "sft", 0.5): 0.0,
        ("ppo", "sft", 1.0): 0.0,
    }


@settings(max_examples=10, deadline=None)
@given(tables, tables)
def test_swapping_the_arms_turns_the_sign(a: np.ndarray, b: np.ndarray) -> None:
    there, back = (
        next(d for d in differences(of_tables({"sft": {"v": y}, "ppo": {"v": x}})) if d.baseline == "sft")
        for x, y in ((a, b), (b, a))
    )
    assert there.estimate.value == -back.estimate.value
    assert _ends(there.estimate) == pytest.approx(_ends(back.estimate, -1))
    assert _ends(there.simultaneous) == pytest.approx(_ends(back.simultaneous, -1))
    assert (there.p, there.wins, there.losses) == (pytest.approx(back.p), back.losses, back.wins)
    assert there.wins - there.losses == pytest.approx(36 * there.estimate.value)


def _ends(interval: Interval, sign: int = 1) -> tuple[float, float]:
    return (interval.low, interval.high) if sign == 1 else (-interval.high, -interval.low)


def test_correction_for_the_number_of_variants() -> None:
    """Bonferroni in the intervals, Holm in the p-values: by hand over three variants."""
    rng = np.random.default_rng(3)
    start = {v: rng.random((3, 60)) < 0.3 for v in "abc"}
    end = {
        v: table | (rng.random((3, 60)) < lift)
        for (v, table), lift in zip(start.items(), (0, 0.08, 0.3), strict=True)
    }
    found = differences(of_tables({INIT: start, "sft": end}))
    assert [each.variant for each in found] == ["a", "b", "c"]
    ordered = sorted(found, key=lambda each: each.p)
    holm = np.maximum.accumulate([min(1, each.p * (3 - i)) for i, each in enumerate(ordered)])
    assert [each.p_holm for each in ordered] == pytest.approx(list(holm))
    columns = np.argsort([f"deal {i}" for i in range(60)])
    for each in found:
        change = (end[each.variant].astype(float) - start[each.variant])[:, columns]
        expected = difference(change).interval(1 - 0.05 / 3)
        assert (each.simultaneous.low, each.simultaneous.high) == pytest.approx(expected)
        assert each.simultaneous.low < each.estimate.low < each.estimate.value


def test_nothing_but_failures_is_not_certainty() -> None:
    nothing = np.zeros((3, 200), bool)
    (found,) = differences(of_tables({INIT: {"v": nothing}, "sft": {"v": nothing}}))
    assert found.estimate.value == 0
    assert found.estimate.low < -0.01
    assert found.estimate.high > 0.01
    assert found.p == 1


def test_records_that_cannot_be_paired_are_refused() -> None:
    start = done(INIT, 0, {0.0: {"v": evaluation([1, 0])}})
    others = done("sft", 0, {1.0: {"v": evaluation([1, 0], instances=("deal 1", "deal 0"))}})
    with pytest.raises(ComparisonError, match=r"sft, seed 0, v at 100%: played other instances"):
        differences(comparison([start, others], [0], ["v"]))
    ragged = done("sft", 0, {1.0: {"v": evaluation([1, 0], outcomes=("CORRECT",))}})
    with pytest.raises(ComparisonError, match="differ in length"):
        successes(comparison([start, ragged], [0], ["v"]))
    with pytest.raises(ComparisonError, match="same arm and seed"):
        successes(comparison([start, start], [0], ["v"]))
    empty = done(INIT, 0, {0.0: {"v": evaluation([])}})
    with pytest.raises(ComparisonError, match="empty"):
        successes(comparison([empty], [0], ["v"]))


def test_no_cell_is_no_number() -> None:
    record = comparison([failed(INIT, 0), missing("sft", 0)], [0], ["v"])
    assert (successes(record), differences(record)) == ([], [])


def test_needed_instances_of_one_seed_is_the_textbook_formula() -> None:
    """Paired proportions: n = (1.96 + 0.84)^2 (discordant - effect^2) / effect^2."""
    found = needed_instances(points=5, seeds=1, discordant=0.3, agreement=0, seed_sd=0)
    assert found == pytest.approx((1.96 + 0.8416) ** 2 * (0.3 - 0.05**2) / 0.05**2, rel=0.01)


@pytest.mark.parametrize(("seeds", "agreement"), [(1, 0.0), (3, 0.5), (5, 0.3)])
def test_needed_instances_have_the_power(seeds: int, agreement: float) -> None:
    """In simulation, 80% of comparisons with a true difference of 5 points find it (within Monte Carlo error)."""
    n = needed_instances(points=5, seeds=seeds, discordant=0.2, agreement=agreement, seed_sd=0)
    rng, values, chances = np.random.default_rng(5), [-1.0, 0.0, 1.0], [0.075, 0.8, 0.125]

    def found() -> bool:
        shared, own = rng.choice(values, (1, n), p=chances), rng.choice(values, (seeds, n), p=chances)
        return difference(np.where(rng.random((seeds, n)) < agreement**0.5, shared, own)).p < 0.05

    assert np.mean([found() for _ in range(300)]) == pytest.approx(0.8, abs=0.07)


def test_seeds_that_differ_too_much_hide_the_difference() -> None:
    with pytest.raises(ComparisonError, match="take more seeds"):
        needed_instances(points=5, seeds=3, discordant=0.3, agreement=0.5, seed_sd=4)
    few = needed_instances(points=5, seeds=5, discordant=0.3, agreement=0.5, seed_sd=2)
    alike = needed_instances(points=5, seeds=5, discordant=0.3, agreement=0.5, seed_sd=0)
    corrected = needed_instances(points=5, seeds=5, discordant=0.3, agreement=0.5, seed_sd=0, variants=7)
    assert few > alike
    assert corrected > alike


def test_two_readings_are_the_same() -> None:
    def read() -> list[Difference]:
        return differences(
            of_tables({INIT: {"v": [[1, 0, 0], [0, 1, 0]]}, "sft": {"v": [[1, 1, 0], [1, 1, 0]]}})
        )

    assert read() == read()
