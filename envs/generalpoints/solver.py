"""The exhaustive exact solver: finds every expression tree over all the numbers that reaches the target.

During the search, values are integer pairs (numerator, positive denominator, not reduced), which is exact and several
times faster than Fractions. Only trees that reach the target become Expressions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from rlpost.envs.generalpoints.expression import Expression


class _Tree(NamedTuple):
    num: int
    den: int  # always positive
    op: str = ""
    left: _Tree | None = None
    right: _Tree | None = None


def _reaches(a: _Tree, b: _Tree, target: int) -> bool:
    """Whether one operation on a and b, in either order, gives the target."""
    x, y, goal = a.num * b.den, b.num * a.den, target * a.den * b.den
    return (
        x + y == goal
        or a.num * b.num == goal
        or x - y == goal
        or y - x == goal
        or (y != 0 and x == target * y)
        or (x != 0 and y == target * x)
    )


def _quotient(left: _Tree, right: _Tree) -> _Tree | None:
    if right.num == 0:
        return None
    sign = 1 if right.num > 0 else -1
    return _Tree(sign * left.num * right.den, sign * left.den * right.num, "/", left, right)


def _joins(left: _Tree, right: _Tree) -> Iterator[_Tree]:
    """Both operands joined in every way. Sums and products occur once, with the larger operand first."""
    x, y = left.num * right.den, right.num * left.den
    if x <= y:
        low, high, x, y = left, right, y, x
    else:
        low, high = right, left
    den = left.den * right.den
    yield _Tree(x + y, den, "+", high, low)
    yield _Tree(left.num * right.num, den, "*", high, low)
    yield _Tree(x - y, den, "-", high, low)
    yield _Tree(y - x, den, "-", low, high)
    for dividend, divisor in ((high, low), (low, high)):
        quotient = _quotient(dividend, divisor)
        if quotient is not None:
            yield quotient


def _trees(pool: tuple[_Tree, ...], target: int) -> Iterator[_Tree]:
    if len(pool) == 1:
        if pool[0].num == target * pool[0].den:
            yield pool[0]
        return
    if len(pool) == 2 and not _reaches(*pool, target):
        return
    for i, j in combinations(range(len(pool)), 2):
        rest = tuple(tree for k, tree in enumerate(pool) if k not in (i, j))
        for joined in _joins(pool[i], pool[j]):
            yield from _trees((*rest, joined), target)


def _expression(tree: _Tree) -> Expression:
    if tree.left is None or tree.right is None:
        return Expression.leaf(tree.num)
    joined = Expression.combine(tree.op, _expression(tree.left), _expression(tree.right))
    assert joined is not None  # the search has already done this division
    return joined


def _search(values: tuple[int, ...], target: int) -> Iterator[_Tree]:
    return _trees(tuple(_Tree(value, 1) for value in values), target)


@lru_cache(maxsize=8192)
def _solve(values: tuple[int, ...], target: int) -> tuple[Expression, ...]:
    # Among trees with the same text the last one is kept: models were trained on texts made in this order.
    found = {e.formula(): e for e in map(_expression, _search(values, target))}
    return tuple(found[formula] for formula in sorted(found))


def solve(values: tuple[int, ...], target: int) -> tuple[Expression, ...]:
    """All solutions with distinct formulas, sorted by formula. Exact rationals throughout."""
    return _solve(tuple(sorted(values)), target)
