"""Decides exactly whether numbers can make a target, fast enough for many redeals.

For up to three numbers, the set of all reachable values is kept. For more, the last operation is undone: split the
numbers in two, and ask for each value of the smaller part whether the rest can make the number that is then missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations

Numbers = tuple[int, ...]  # sorted
_KEEP_SETS_UP_TO = 3


def _splits(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Every way to split the numbers in two, smaller part first; equal parts are given in both orders."""
    indices = range(len(numbers))
    seen = set()
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(indices, size):
            part = tuple(numbers[i] for i in chosen)
            if part not in seen:
                seen.add(part)
                yield part, tuple(numbers[i] for i in indices if i not in chosen)


def _join(a: Fraction, b: Fraction) -> set[Fraction]:
    values = {a + b, a - b, b - a, a * b}
    if b:
        values.add(a / b)
    if a:
        values.add(b / a)
    return values


@cache  # at most a few thousand small tuples of card values
def _reachable(numbers: Numbers) -> frozenset[Fraction]:
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    pairs = ((a, b) for left, right in _splits(numbers) for a in _reachable(left) for b in _reachable(right))
    return frozenset(value for a, b in pairs for value in _join(a, b))


def _partners(target: Fraction, a: Fraction) -> set[Fraction]:
    """Every b for which one operation on a and b, in either order, gives the target (a and b not both 0)."""
    partners = {target - a, a - target, target + a}
    if a:
        partners |= {target / a, target * a}
        if target:
            partners.add(a / target)
    return partners


def _can_make(numbers: Numbers, target: Fraction) -> bool:
    if len(numbers) <= _KEEP_SETS_UP_TO:
        return target in _reachable(numbers)
    return any(
        (not a and not target) or any(_can_make(rest, partner) for partner in _partners(target, a))
        for part, rest in _splits(numbers)
        for a in _reachable(part)
    )


@lru_cache(maxsize=65536)
def _solvable(numbers: Numbers, target: int) -> bool:
    return _can_make(numbers, Fraction(target))


def solvable(values: tuple[int, ...], target: int) -> bool:
    """Whether some expression that uses each value once equals the target exactly."""
    return _solvable(tuple(sorted(values)), target)
