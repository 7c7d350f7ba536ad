"""Micro-batches: everything once, under the budget, as many on every rank; and tokens where they belong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.errors import LearnerError
from rlpost.learner.packing import Row, check_rows, collate, plan_micro_batches, slot_starts

lengths_and_budget = st.lists(st.integers(2, 30), max_size=40).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.integers(max(lengths, default=2), 200))
)


@given(lengths_and_budget, st.integers(1, 4))
def test_every_row_once_under_the_budget(case: tuple[list[int], int], ranks: int) -> None:
    lengths, budget = case
    plan = plan_micro_batches(lengths, range(len(lengths)), budget, ranks)
    assert sorted(i for share in plan for batch in share for i in batch) == list(range(len(lengths)))
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    for share in plan:
        for batch in share:
            assert len(batch) * max((lengths[i] for i in batch), default=0) <= budget


@given(st.lists(st.integers(2, 30), min_size=1, max_size=40), st.integers(1, 4))
def test_loads_differ_by_one_row_at_most(lengths: list[int], ranks: int) -> None:
    plan = plan_micro_batches(lengths, range(len(lengths)), 1000, ranks)
    loads = [sum(lengths[i] for batch in share for i in batch) for share in plan]
    assert max(loads) - min(loads) <= max(lengths)


def test_plan_by_hand() -> None:
    """Longest first 9, 7, 6, 5, 2; loads after each: 9|0, 9|7, 9|13, 14|13, 14|15. Three 7s exceed 18."""
    plan = plan_micro_batches([6, 9, 5, 7, 2], [0, 1, 2, 3, 4], budget=18, ranks=2)
    assert plan == [[[1, 2], []], [[3, 0], [4]]]


def test_similar_lengths_share_a_micro_batch() -> None:
    plan = plan_micro_batches([10, 2, 10, 2, 2], range(5), budget=20, ranks=1)
    assert plan == [[[0, 2], [1, 3, 4]]]


def test_collate_by_hand() -> None:
    """Hidden states one position before each counted token; slots in the numbering of all rows."""
    rows = [Row([5, 6, 7, 8], [0, 1, 0, 1]), Row([1, 2], [0, 1]), Row([3, 4, 9], [0, 1, 1])]
    starts = slot_starts(rows)
    assert starts == [0, 2, 3, 5]
    micro = collate(rows, starts, [2, 0])
    assert micro.input_ids_BT.tolist() == [[3, 4, 0], [5, 6, 7]]
    assert micro.rows_N.tolist() == [0, 0, 1, 1]
    assert micro.columns_N.tolist() == [0, 1, 0, 2]
    assert micro.targets_N.tolist() == [4, 9, 6, 8]
    assert micro.slots_N.tolist() == [3, 4, 0, 1]


def test_an_empty_micro_batch_counts_nothing() -> None:
    micro = collate([], [0], [])
    assert micro.input_ids_BT.shape == (1, 1)
    assert micro.targets_N.numel() == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row([1, 2, 3], [0, 1]), "3 tokens but a mask of 2"),
        (Row([1, 2, 3], [0, 0, 0]), "no token"),
        (Row([1, 2, 3], [1, 0, 1]), "nothing stands before"),
        (Row([1] * 9, [0] * 8 + [1]), "learner.micro_batch_tokens=8"),
    ],
)
def test_rows_that_make_no_sense_are_refused(row: Row, reason: str) -> None:
    with pytest.raises(LearnerError, match=reason):
        check_rows([Row([1] * 8, [0] * 7 + [1]), row], budget=8)


def test_a_row_of_the_whole_budget_fits() -> None:
    check_rows([Row([1] * 8, [0] * 7 + [1])], budget=8)
    assert plan_micro_batches([8], [0], 8, 1) == [[[0]]]
