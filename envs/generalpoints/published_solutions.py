"""All solutions in the spelling of the published solver: all orders, all operators and seven bracketings.

The seven: no pair, a pair around each two or three neighbours, and two pairs side by side. Nested pairs are left out:
they would add spellings, but would not make more deals solvable.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import permutations, product

from rlpost.envs.generalpoints.arithmetic import is_number, to_postfix, tokens

CARDS = 4
_BRACKETINGS = (
    "a{}b{}c{}d",
    "(a{}b){}c{}d",
    "(a{}b{}c){}d",
    "a{}(b{}c){}d",
    "a{}(b{}c{}d)",
    "a{}b{}(c{}d)",
    "(a{}b){}(c{}d)",
)
_Pair = tuple[int, int]  # numerator, denominator (not 0), not reduced


def _apply(op: str, left: _Pair, right: _Pair) -> _Pair | None:
    (a, b), (c, d) = left, right
    if op == "+":
        return a * d + c * b, b * d
    if op == "-":
        return a * d - c * b, b * d
    if op == "*":
        return a * c, b * d
    return (a * d, b * c) if c else None


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(format string, postfix over the card indices 0 to 3) of every bracketing with all operators."""
    templates = []
    for bracketing in _BRACKETINGS:
        for ops in product("+-*/", repeat=CARDS - 1):
            text = bracketing.format(*ops)
            for place, letter in enumerate("abcd"):
                text = text.replace(letter, str(place))
            postfix = to_postfix(tokens(text))
            assert postfix is not None
            spelled = "".join(f"{{{token}}}" if is_number(token) else token for token in tokens(text))
            templates.append((spelled, tuple(postfix)))
    return tuple(templates)


def _hits(postfix: tuple[str, ...], numbers: tuple[int, ...], target: int) -> bool:
    stack: list[_Pair] = []
    for token in postfix:
        if is_number(token):
            stack.append((numbers[int(token)], 1))
            continue
        right, left = stack.pop(), stack.pop()
        joined = _apply(token, left, right)
        if joined is None:
            return False
        stack.append(joined)
    numerator, denominator = stack.pop()
    return numerator == target * denominator


@lru_cache(maxsize=4096)
def _solutions(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    return tuple(
        sorted(
            spelled.format(*order)
            for order in set(permutations(numbers))
            for spelled, postfix in _templates()
            if _hits(postfix, order, target)
        )
    )


def published_solutions(values: tuple[int, ...], target: int) -> tuple[str, ...]:
    """The stored solution texts for four values, without spaces, sorted. Raises ValueError unless there are four."""
    if len(values) != CARDS:
        raise ValueError(f"published solutions exist for {CARDS} cards, not for {len(values)}")
    return _solutions(tuple(sorted(values)), target)


def starts_a_solution(text: str, solutions: tuple[str, ...]) -> bool:
    """Whether a text is the start of one of the sorted solutions. The empty text starts every solution."""
    place = bisect_left(solutions, text)
    return place < len(solutions) and solutions[place].startswith(text)
