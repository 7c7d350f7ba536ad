from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlpost.compare.design.types import INIT
from rlpost.compare.statistics.directions import Direction, direction_of
from rlpost.compare.statistics.estimates import Difference, differences, successes
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


def test_named_contrasts_have_the_intervals_of_every_other_difference() -> None:
    """Two variants, so that the simultaneous interval is the wider one."""
    tables = {
        arm: {"a": [[int(i < solved) for i in range(12)]] * 3, "b": [[1, 0] * 6] * 3}
        for arm, solved in ((INIT, 2), ("grpo", 4), ("opd", 9))
    }
    plain, named = of_tables(tables), of_tables(tables, contrasts=(("opd", "grpo"),))
    assert ("opd", "grpo") not in {(d.arm, d.baseline) for d in differences(plain)}
    found = {(d.arm, d.baseline, d.variant): d for d in differences(named)}
    assert len(found) == len(differences(plain)) + 2
    ahead = found["opd", "grpo", "a"]
    assert ahead.estimate.value == pytest.approx(5 / 12)
    assert ahead.simultaneous.low < ahead.estimate.low
    assert ahead.p_corrected == pytest.approx(min(1.0, 2 * ahead.p))


def test_arms_are_compared_with_their_own_start_and_starts_with_the_first() -> None:
    names = {"init.s": 2, "init.l": 8, "ppo.s": 6, "ppo.l": 7}
    tables = {name: {"v": [[int(i < solved) for i in range(12)]]} for name, solved in names.items()}
    found = {(d.arm, d.baseline): 12 * d.estimate.value for d in differences(of_tables(tables))}
    assert found == {
        ("ppo.s", "init.s"): pytest.approx(4),
        ("ppo.l", "init.l"): pytest.approx(-1),
        ("init.l", "init.s"): pytest.approx(6),
        ("ppo.l", "ppo.s"): pytest.approx(1),
    }


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
    """Bonferroni, in the intervals and the p-values: by hand over three variants."""
    rng = np.random.default_rng(3)
    start = {v: rng.random((3, 60)) < 0.3 for v in "abc"}
    end = {
        v: table | (rng.random((3, 60)) < lift)
        for (v, table), lift in zip(start.items(), (0, 0.08, 0.3), strict=True)
    }
    found = differences(of_tables({INIT: start, "sft": end}))
    assert [each.variant for each in found] == ["a", "b", "c"]
    assert [each.p_corrected for each in found] == pytest.approx([min(1, 3 * each.p) for each in found])
    columns = np.argsort([f"deal {i}" for i in range(60)])
    for each in found:
        change = (end[each.variant].astype(float) - start[each.variant])[:, columns]
        expected = difference(change).interval(1 - 0.05 / 3)
        assert (each.simultaneous.low, each.simultaneous.high) == pytest.approx(expected)
        assert each.simultaneous.low < each.estimate.low < each.estimate.value


@settings(max_examples=40, deadline=None)
@given(tables, tables, st.integers(1, 7))
def test_direction_interval_and_p_value_agree(a: np.ndarray, b: np.ndarray, variants: int) -> None:
    """Whatever the tables, and on however many variants: one correction, one conclusion."""
    names = [f"v{i}" for i in range(variants)]
    found = differences(of_tables({INIT: dict.fromkeys(names, a), "sft": dict.fromkeys(names, b)}))
    assert len(found) == variants
    for each in found:
        clear = direction_of(each.simultaneous) is not Direction.UNCLEAR
        assert (
            clear == (each.p_corrected < 0.05) == (not each.simultaneous.low <= 0 <= each.simultaneous.high)
        )


def test_holm_would_contradict_the_interval_that_is_shown() -> None:
    """Why it is Bonferroni: here Holm's p-value of `b` is below 5% and its simultaneous interval holds zero."""
    nothing = [[0] * 60]
    gained = {"a": [[1] * 60], "b": [[1] * 6 + [0] * 54]}
    record = of_tables({INIT: dict.fromkeys("ab", nothing), "sft": gained})
    found = {each.variant: each for each in differences(record)}
    assert found["a"].p < found["b"].p < 0.05  # Holm's correction of the larger of two is none
    assert found["b"].simultaneous.low < 0
    assert found["b"].p_corrected > 0.05


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


def test_two_readings_are_the_same() -> None:
    def read() -> list[Difference]:
        return differences(
            of_tables({INIT: {"v": [[1, 0, 0], [0, 1, 0]]}, "sft": {"v": [[1, 1, 0], [1, 1, 0]]}})
        )

    assert read() == read()
