"""Micro-batches: everything once, under the budget, as many on every rank; and tokens where they belong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.errors import LearnerError
from rlpost.learner.model.packing import Plan, Row, check_rows, collate, plan_micro_batches, slot_starts
from rlpost.learner.model.prefixes import Group


@st.composite
def row_sets(draw: st.DrawFn) -> tuple[list[Row], int]:
    """Up to five prompts with up to eight answers each, all lengths random, and a budget that the longest fits."""
    dice = random.Random(draw(st.integers(0, 10**6)))
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        prompt = [dice.randrange(50) for _ in range(dice.randint(1, 20))]
        for _ in range(dice.randint(1, 8)):
            answer = [dice.randrange(50) for _ in range(dice.randint(1, 10))]
            rows.append(Row(prompt + answer, [0] * len(prompt) + [1] * len(answer)))
    longest = max((len(row.token_ids) for row in rows), default=2)
    return rows, draw(st.integers(longest, longest + 60))


def _cost(rows: list[Row], group: Group) -> int:
    return group.prefix + sum(len(rows[i].token_ids) - 1 - group.prefix for i in group.members)


def _loads(rows: list[Row], plan: Plan) -> list[int]:
    return [sum(_cost(rows, group) for batch in share for group in batch) for share in plan]


@given(row_sets(), st.integers(1, 4))
def test_every_row_once_under_the_budget(case: tuple[list[Row], int], ranks: int) -> None:
    rows, budget = case
    plan = plan_micro_batches(rows, range(len(rows)), budget, ranks)
    assert sorted(i for share in plan for b in share for g in b for i in g.members) == list(range(len(rows)))
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    for share in plan:
        for batch in share:
            assert sum(_cost(rows, group) for group in batch) <= budget
    assert plan == plan_micro_batches(rows, range(len(rows))[::-1], budget, ranks)


@given(row_sets(), st.integers(1, 4))
def test_loads_differ_by_one_piece_at_most(case: tuple[list[Row], int], ranks: int) -> None:
    """And a piece is no more than a fair part of the work, a prefix and a row."""
    rows, _ = case
    plan = plan_micro_batches(rows, range(len(rows)), 1000, ranks)
    loads = _loads(rows, plan)
    pieces = [_cost(rows, group) for share in plan for batch in share for group in batch]
    assert max(loads) - min(loads) <= max(pieces, default=0)
    longest = max((len(row.token_ids) for row in rows), default=0)
    distinct = sum(_loads(rows, plan_micro_batches(rows, range(len(rows)), 10**6, 1)))
    assert max(pieces, default=0) <= distinct / ranks + 2 * longest


def _rows(*prompts_and_answers: tuple[int, int, int]) -> list[Row]:
    """(prompt number, its length, input tokens of the answer): the last token, a target only, comes on top."""
    rows = []
    for k, (prompt, length, answer) in enumerate(prompts_and_answers):
        mask = [0] * length + [0] * answer + [1]
        rows.append(Row([prompt] * length + [100 + k] * answer + [7], mask))
    return rows


def test_plan_by_hand() -> None:
    """Group A: 10 + 3 + 4 + 5 = 22 tokens, B: 9 + 6 + 1 = 16, C alone 12; 50 in all, 25 a rank.
    A, then B and C to the other rank; its budget of 24 takes them apart, and the first rank fills up."""
    rows = _rows((1, 10, 3), (2, 9, 6), (1, 10, 4), (3, 8, 4), (1, 10, 5), (2, 9, 1))
    plan = plan_micro_batches(rows, range(6), 24, 2)
    assert plan == [[[Group(10, (0, 2, 4))], []], [[Group(9, (1, 5))], [Group(0, (3,))]]]


def test_a_group_over_the_budget_is_cut() -> None:
    """10 + 3 + 4 = 17 fit 20, the third does not: it carries its own prefix, 15 tokens."""
    rows = _rows((1, 10, 3), (1, 10, 4), (1, 10, 5))
    assert plan_micro_batches(rows, range(3), 20, 1) == [[[Group(10, (0, 1))], [Group(0, (2,))]]]


def test_one_group_serves_two_ranks() -> None:
    rows = _rows(*[(1, 10, 5)] * 8)
    plan = plan_micro_batches(rows, range(8), 1000, 2)
    assert _loads(rows, plan) == [30, 30]


def test_collate_by_hand() -> None:
    """Rows 0 and 2 share 1 2 3; 9 8 stand alone. Hidden states one before each loss token; 5 is a target only."""
    rows = [
        Row([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
        Row([9, 8], [0, 1]),
        Row([1, 2, 3, 6, 7, 8], [0, 0, 0, 1, 0, 1]),
    ]
    starts = slot_starts(rows)
    assert starts == [0, 3, 4, 6]
    micro = collate(rows, starts, [Group(0, (1,)), Group(3, (0, 2))])
    assert micro.input_ids_T.tolist() == [9, 1, 2, 3, 4, 6, 7]
    assert micro.positions_T.tolist() == [0, 0, 1, 2, 3, 3, 4]
    assert micro.columns_N.tolist() == [0, 2, 3, 4, 3, 6]
    assert micro.targets_N.tolist() == [8, 3, 4, 5, 6, 8]
    assert micro.slots_N.tolist() == [3, 0, 1, 2, 4, 5]


def test_an_empty_micro_batch_counts_nothing() -> None:
    micro = collate([], [0], [])
    assert micro.input_ids_T.shape == (1,)
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
    row = Row([1] * 8, [0] * 7 + [1])
    check_rows([row], budget=8)
    assert plan_micro_batches([row], [0], 8, 1) == [[[Group(0, (0,))]]]
