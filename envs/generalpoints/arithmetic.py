"""Parses formulas without eval: a stack (shunting-yard) makes them postfix, so no nesting exhausts the call stack."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from rlpost.envs.generalpoints.expression import OPERATIONS, PRECEDENCE

Number = TypeVar("Number", Fraction, float)

_TOKEN = re.compile(r"\d+|[-+*/()]")


def tokens(formula: str) -> list[str]:
    """The runs of decimal digits, operators and parentheses. Other characters are skipped, so check them first."""
    return _TOKEN.findall(formula)


def is_number(token: str) -> bool:
    return token[0].isdecimal()


def _is_literal(token: str) -> bool:
    """Whether a run of digits is a valid number: ASCII, without a leading zero."""
    return token.isascii() and (len(token) == 1 or token[0] != "0")


class _Converter:
    """Converts infix to postfix, one token at a time. Each method returns False if the token is not allowed there."""

    def __init__(self) -> None:
        self.output: list[str] = []
        self._waiting: list[str] = []  # operators and opening parentheses
        self._wants_operand = True

    def accept(self, token: str) -> bool:
        if is_number(token):
            return self._number(token)
        if token == "(":
            self._waiting.append(token)
            return self._wants_operand
        return self._close() if token == ")" else self._operator(token)

    def finish(self) -> bool:
        self._flush(0)
        return not self._wants_operand and not self._waiting

    def _number(self, token: str) -> bool:
        allowed = self._wants_operand and _is_literal(token)
        self.output.append(token)
        self._wants_operand = False
        return allowed

    def _operator(self, token: str) -> bool:
        allowed = not self._wants_operand
        self._flush(PRECEDENCE[token])
        self._waiting.append(token)
        self._wants_operand = True
        return allowed

    def _close(self) -> bool:
        self._flush(0)
        return not self._wants_operand and bool(self._waiting) and self._waiting.pop() == "("

    def _flush(self, precedence: int) -> None:
        """Output the waiting operators of at least this precedence, down to the last open parenthesis."""
        while self._waiting and self._waiting[-1] != "(" and PRECEDENCE[self._waiting[-1]] >= precedence:
            self.output.append(self._waiting.pop())


def to_postfix(infix: list[str]) -> list[str] | None:
    """The tokens in postfix order, or None if they are not valid arithmetic (a sign, as in -3, is not)."""
    converter = _Converter()
    if all(converter.accept(token) for token in infix) and converter.finish():
        return converter.output
    return None


def evaluate(postfix: list[str], leaf: Callable[[str], Number]) -> Number:
    """The value of a postfix list from `to_postfix`, computed with the number type of `leaf`.

    Raises ZeroDivisionError if it divides by zero.
    """
    stack: list[Number] = []
    for token in postfix:
        if is_number(token):
            stack.append(leaf(token))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(OPERATIONS[token](left, right))
    return stack.pop()


def exact(token: str) -> Fraction:
    return Fraction(int(token))
