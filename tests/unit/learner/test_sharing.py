"""Groups of rows that share a prefix: found by tokens alone, complete, and as good as trying all partitions."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.learner.model.prefixes import Group, share_prefixes

tokens_lists = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), max_size=7)


def _common(rows: list[list[int]]) -> int:
    return next(
        (t for t, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows))
    )


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in _partitions(items[1:]):
        yield [[items[0]], *rest]
        for k in range(len(rest)):
            yield [*rest[:k], [items[0], *rest[k]], *rest[k + 1 :]]


@given(tokens_lists)
def test_groups_hold_each_row_once_and_their_prefix_is_common(tokens: list[list[int]]) -> None:
    groups = share_prefixes(tokens, range(len(tokens)), worthwhile=1)
    assert sorted(i for group in groups for i in group.members) == list(range(len(tokens)))
    for group in groups:
        assert len({tuple(tokens[i][: group.prefix]) for i in group.members}) == 1
        assert len(group.members) > 1 or group.prefix == 0
    assert groups == share_prefixes(tokens, range(len(tokens))[::-1], worthwhile=1)


@settings(derandomize=True)
@given(tokens_lists)
def test_at_least_half_of_what_the_best_partition_saves(tokens: list[list[int]]) -> None:
    """Runs join or stay apart as wholes, so the optimum can be missed, but not by much on these cases."""
    groups = share_prefixes(tokens, range(len(tokens)), worthwhile=1)
    saved = sum(group.prefix * (len(group.members) - 1) for group in groups)
    best = max(
        sum(_common([tokens[i] for i in part]) * (len(part) - 1) for part in partition)
        for partition in _partitions(list(range(len(tokens))))
    )
    assert best / 2 <= saved <= best


def test_a_common_header_does_not_break_up_the_groups() -> None:
    """Two prompts of 20 with four answers each, behind a header of 10 that two more rows have as well."""
    header = [0] * 10
    tokens = [[*header, *[p] * 10, 50 + a] for p in (1, 2) for a in range(4)] + [[*header, 98], [*header, 99]]
    assert share_prefixes(tokens, range(10)) == [
        Group(20, (0, 1, 2, 3)),
        Group(20, (4, 5, 6, 7)),
        Group(10, (8, 9)),
    ]


def test_short_prefixes_are_not_worth_it() -> None:
    tokens = [[0] * 7 + [a] for a in range(1, 4)]
    assert share_prefixes(tokens, range(3)) == [Group(0, (i,)) for i in range(3)]
    assert share_prefixes(tokens, range(3), worthwhile=7) == [Group(7, (0, 1, 2))]


def test_equal_and_nested_rows() -> None:
    """The same answer drawn twice is computed once; a row that ends where others go on shares all of itself."""
    row = list(range(10))
    assert share_prefixes([row, row, [*row, 5], [7] * 9], range(4)) == [Group(10, (0, 1, 2)), Group(0, (3,))]


def test_many_rows_nested_in_one_another() -> None:
    """No recursion: thousands of levels are as good as one."""
    random.seed(0)
    row = [random.randrange(9) for _ in range(1500)]
    groups = share_prefixes([row[:n] for n in range(1, 1500)], range(1499))
    assert sorted(i for group in groups for i in group.members) == list(range(1499))
