"""The exhaustive exact solver: every expression tree over all the numbers that reaches the target."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

from envs.generalpoints.expression import Expression

_ORDERED_OPS = (("+", False), ("*", False), ("-", False), ("-", True), ("/", False), ("/", True))


def _pairings(left: Expression, right: Expression) -> Iterator[Expression]:
    """Both operands joined in every way; sums and products once, larger operand first."""
    low, high = sorted((left, right), key=lambda e: e.value)
    for op, swapped in _ORDERED_OPS:
        joined = Expression.combine(op, low, high) if swapped else Expression.combine(op, high, low)
        if joined is not None:
            yield joined


def _trees(pool: tuple[Expression, ...], target: Fraction) -> Iterator[Expression]:
    if len(pool) == 1:
        if pool[0].value == target:
            yield pool[0]
        return
    for i, j in combinations(range(len(pool)), 2):
        rest = tuple(e for k, e in enumerate(pool) if k not in (i, j))
        for joined in _pairings(pool[i], pool[j]):
            yield from _trees((*rest, joined), target)


@lru_cache(maxsize=8192)
def _solve(values: tuple[int, ...], target: int) -> tuple[Expression, ...]:
    found = {e.formula(): e for e in _trees(tuple(map(Expression.leaf, values)), Fraction(target))}
    return tuple(found[formula] for formula in sorted(found))


def solve(values: tuple[int, ...], target: int) -> tuple[Expression, ...]:
    """All solutions with distinct formulas, sorted by formula. Exact rationals throughout."""
    return _solve(tuple(sorted(values)), target)
