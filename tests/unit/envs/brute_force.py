"""Witnesses that share no code with envs: every order, operator and tree shape, exactly, in whole arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, permutations, product
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pair = tuple[Ints, Ints]  # numerators and denominators; a denominator of 0 marks a division by zero

Hand = tuple[int, ...]


def hands(highest: int) -> list[Hand]:
    return list(combinations_with_replacement(range(1, highest + 1), 4))


def _op(op: str, x: Pair, y: Pair) -> Pair:
    (a, b), (c, d) = x, y
    if op == "*":
        return a * c, b * d
    if op == "/":
        return a * d * np.where(b * d == 0, 0, 1), b * c * np.where(d == 0, 0, 1)
    return (a * d + c * b if op == "+" else a * d - c * b), b * d


def _shapes(n: list[Pair], p: str, q: str, r: str) -> Iterator[Pair]:
    """The five ways to parenthesise a p b q c r d in full."""
    a, b, c, d = n
    yield _op(r, _op(q, _op(p, a, b), c), d)
    yield _op(r, _op(p, a, _op(q, b, c)), d)
    yield _op(q, _op(p, a, b), _op(r, c, d))
    yield _op(p, a, _op(r, _op(q, b, c), d))
    yield _op(p, a, _op(q, b, _op(r, c, d)))


def solvable(all_hands: list[Hand], target: int) -> list[bool]:
    """For each hand of four, whether any order, operators and parentheses make the target."""
    numbers = np.array(all_hands, dtype=np.int64)
    found = np.zeros(len(all_hands), dtype=bool)
    for order in permutations(range(4)):
        leaves = [(numbers[:, i], np.ones(len(all_hands), dtype=np.int64)) for i in order]
        for p, q, r in product("+-*/", repeat=3):
            for numerator, denominator in _shapes(leaves, p, q, r):
                found |= (denominator != 0) & (numerator == target * denominator)
    return [bool(each) for each in found]


@cache
def reachable(hand: Hand) -> NDArray[np.float64]:
    """The values of all expressions that use each number once, rounded to 9 places, for one to five numbers.

    Values of so few small numbers that differ at all differ by far more than the rounding.
    """
    if len(hand) == 1:
        return np.array(hand, dtype=np.float64)
    found = []
    for chosen in product((True, False), repeat=len(hand)):
        left = tuple(n for n, here in zip(hand, chosen, strict=True) if here)
        right = tuple(n for n, here in zip(hand, chosen, strict=True) if not here)
        if left and right:
            x, y = np.broadcast_arrays(reachable(left)[:, None], reachable(right)[None, :])
            safe = np.where(y == 0, np.nan, y)
            found += [(x + y).ravel(), (x - y).ravel(), (x * y).ravel(), (x / safe).ravel()]
    every = np.round(np.concatenate(found), 9) + 0.0  # -0.0 becomes 0.0
    return np.unique(every[~np.isnan(every)])


def orderings(hand: Hand) -> int:
    return factorial(len(hand)) // prod(map(factorial, Counter(hand).values()))


# --- nested tuples (op, left, right) with whole-number leaves -------------------------------------------------

Tree = int | tuple[str, "Tree", "Tree"]


def value(tree: Tree) -> Fraction:
    """Exact value by plain recursion; ZeroDivisionError as Fractions raise it."""
    if isinstance(tree, int):
        return Fraction(tree)
    op, left, right = tree
    x, y = value(left), value(right)
    return {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[op]()


def text(tree: Tree) -> str:
    """Every operation in parentheses but the outermost."""
    if isinstance(tree, int):
        return str(tree)
    op, left, right = tree
    parts = [text(side) if isinstance(side, int) else f"({text(side)})" for side in (left, right)]
    return op.join(parts)


def _chain(op: str, tree: Tree) -> list[str]:
    """The operands of a run of one commutative operation."""
    if isinstance(tree, int) or tree[0] != op:
        return [canonical(tree)]
    return _chain(op, tree[1]) + _chain(op, tree[2])


def canonical(tree: Tree) -> str:
    """One text for all trees that differ only in the order and grouping within sums and within products."""
    if isinstance(tree, int):
        return str(tree)
    op, left, right = tree
    if op in "+*":
        return "(" + op.join(sorted(_chain(op, left) + _chain(op, right))) + ")"
    return f"({canonical(left)}{op}{canonical(right)})"


def trees(hand: Hand) -> Iterator[Tree]:
    """All trees over four numbers: 24 orders, 64 operator choices, 5 shapes."""
    for a, b, c, d in set(permutations(hand)):
        for p, q, r in product("+-*/", repeat=3):
            yield (r, (q, (p, a, b), c), d)
            yield (r, (p, a, (q, b, c)), d)
            yield (q, (p, a, b), (r, c, d))
            yield (p, a, (r, (q, b, c), d))
            yield (p, a, (q, b, (r, c, d)))


def solutions(hand: Hand, target: int) -> Iterator[Tree]:
    for tree in trees(hand):
        try:
            if value(tree) == target:
                yield tree
        except ZeroDivisionError:
            continue
