"""Exact arithmetic expressions: a tree with its value, its text and the steps that compute it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}

# The operators, for numbers of any kind; a division by zero raises ZeroDivisionError. For speed, the inner loops of
# solver.py, solvability.py and published_solutions.py repeat them for pairs of integers, or for whole tables at once.
OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def apply(op: str, left: Fraction, right: Fraction) -> Fraction | None:
    """left op right, exactly; None for a division by zero."""
    return None if op == "/" and not right else OPERATIONS[op](left, right)


def number_text(value: Fraction) -> str:
    """3 as `3`, one half as `(1/2)`."""
    return str(value) if value.denominator == 1 else f"({value})"


@dataclass(frozen=True)
class Expression:
    """A leaf (op is empty) or `left op right`."""

    value: Fraction
    op: str = ""
    left: Expression | None = None
    right: Expression | None = None

    @staticmethod
    def leaf(number: int) -> Expression:
        return Expression(Fraction(number))

    @staticmethod
    def combine(op: str, left: Expression, right: Expression) -> Expression | None:
        """`left op right`; None if it divides by zero."""
        value = apply(op, left.value, right.value)
        return None if value is None else Expression(value, op, left, right)

    def formula(self) -> str:
        """Infix text without spaces, with the fewest parentheses that keep the tree."""
        if self.left is None or self.right is None:
            return number_text(self.value)
        left, right = self.left.formula(), self.right.formula()
        if self.left.op and PRECEDENCE[self.left.op] < PRECEDENCE[self.op]:
            left = f"({left})"
        if self.right.op and self._right_needs_parentheses(self.right.op):
            right = f"({right})"
        return f"{left}{self.op}{right}"

    def _right_needs_parentheses(self, right_op: str) -> bool:
        if PRECEDENCE[right_op] < PRECEDENCE[self.op]:
            return True
        return PRECEDENCE[right_op] == PRECEDENCE[self.op] and (self.op in "-/" or right_op in "-/")

    def leaves(self) -> Iterator[Fraction]:
        if self.left is None or self.right is None:
            yield self.value
        else:
            yield from self.left.leaves()
            yield from self.right.leaves()

    def nodes(self) -> Iterator[Expression]:
        """Inner nodes, operands before the operation that needs them."""
        if self.left is not None and self.right is not None:
            yield from self.left.nodes()
            yield from self.right.nodes()
            yield self

    def is_simple(self) -> bool:
        """Whether every intermediate value is a natural number (zero included)."""
        return all(node.value.denominator == 1 and node.value >= 0 for node in self.nodes())

    def steps(self) -> str:
        """The computation: each operation with its result and the numbers that are left.

        (10-6)*3*2 on 2 3 6 10: `10-6=4 left 2 3 4, 4*3=12 left 2 12, 12*2=24`
        """
        pool = list(self.leaves())
        parts = []
        for node in self.nodes():
            assert node.left is not None
            assert node.right is not None
            pool.remove(node.left.value)
            pool.remove(node.right.value)
            pool.append(node.value)
            left = " ".join(number_text(value) for value in sorted(pool))
            operands = f"{number_text(node.left.value)}{node.op}{number_text(node.right.value)}"
            text = f"{operands}={number_text(node.value)}"
            parts.append(f"{text} left {left}" if len(pool) > 1 else text)
        return ", ".join(parts)
