"""Decides which answers may reach scorers of reasoning-gym that evaluate them as Python code.

Some of its scorers pass the model's text to `eval`, or to SymPy's `parse_expr`, which is `eval` behind a tokenizer: the
answer `__import__('os').system(...)` would run. Their answers are parsed here first. They pass only if every part is a
number, an operator, or something else that a right answer to the task needs, and if their values stay small.

Two of the scorers also let SymPy simplify what they read, which takes unbounded time. Such an answer must have few
terms when it is multiplied out, a low degree, and little inside functions. Of random answers that pass, 2% still take
over 2 s (mostly functions within functions); rollout.env_timeout_s ends those.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

EVALUATORS = frozenset({"eval", "exec", "compile", "parse_expr", "sympify", "parse_latex"})
OF_THE_QUESTION = frozenset({"bitwise_arithmetic", "number_sorting"})
"""Tasks whose scorers evaluate their own question or oracle, not the model's answer."""

_MAX_BITS = 4096  # bits of every intermediate number
_MAX_EXPONENT = 64
_MAX_NODES = 300
_MAX_TERMS = 256  # terms of an expression multiplied out, which is the first step of SymPy's `simplify`
_TERMS_OF_CALL = 4
_MAX_DEGREE = 64
_MAX_INNER_DEGREE = 2  # degree of a function's argument
_MAX_CALLS = 4  # nested functions: SymPy simplifies their derivatives
_EXPRESSION = re.compile(r"[0-9A-Za-z+\-*/()., ]*")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh"}
    | {"exp", "log", "ln", "sqrt", "Abs"}
)


class _TooMuch(Exception):
    pass


def is_literal(answer: str) -> bool:
    """Whether `eval` would read a list of texts and numbers in an answer, or no code at all."""
    try:
        tree = ast.parse(answer.lstrip(" \t"), mode="eval")
    except (SyntaxError, ValueError):
        return "(" not in answer  # neither code for eval, nor a call in invalid code
    except (RecursionError, MemoryError):
        return False
    allowed = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
    return all(isinstance(node, allowed) for node in ast.walk(tree))


def is_arithmetic(answer: str) -> bool:
    """Whether an answer is + - * / ** on numbers, with no intermediate value of more than 4096 bits."""
    return _is_expression(answer, names=False)


def is_algebra(answer: str) -> bool:
    """Like `is_arithmetic`, but also with variables and elementary functions, and few terms when multiplied out."""
    return _is_expression(answer, names=True)


def _is_expression(answer: str, names: bool) -> bool:
    if not _EXPRESSION.fullmatch(answer.strip()):
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval")
        small = sum(1 for _ in ast.walk(tree)) <= _MAX_NODES and _size(tree.body, names) <= _MAX_BITS
        return small and (
            not names or (_terms(tree.body) <= _MAX_TERMS and _degree(tree.body) <= _MAX_DEGREE)
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError, _TooMuch):
        return False


def _size(node: ast.expr, names: bool, calls: int = 0) -> float:
    """An upper bound on the bits of an expression's value. Raises _TooMuch for nodes that are not allowed."""
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value.bit_length()
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return 64
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _size(operand, names, calls)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _size(left, names, calls) * max(1, _exponent(right))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return 1 + _size(left, names, calls) + _size(right, names, calls)
        case ast.Name() if names:
            return 1
        case ast.Call(func=ast.Name(id=function), args=[argument], keywords=[]) if (
            names and function in _FUNCTIONS and calls < _MAX_CALLS
        ):
            return 64 + _size(argument, names, calls + 1)
    raise _TooMuch


def _exponent(node: ast.expr) -> float:
    """The size of an exponent, which must be a small number: 2, -1, (1/2), 0.5."""
    match node:
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _exponent(operand)
        case ast.BinOp(left=ast.Constant(), op=ast.Div(), right=ast.Constant() as below):
            return max(_exponent(node.left), _exponent(below))
        case ast.Constant(value=int() | float() as value) if abs(value) <= _MAX_EXPONENT:
            return abs(value)
    raise _TooMuch


def _terms(node: ast.expr) -> int:
    """A bound on the terms of an expression that `_size` accepts, multiplied out but not collected.

    A quotient counts as a product, because both its sides are multiplied out. A function counts as several terms,
    because SymPy rewrites its powers and the sums in its argument. Raises _TooMuch once there are too many.
    """
    match node:
        case ast.UnaryOp(operand=operand):
            return _terms(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _few(_terms_of_power(_terms(left), math.ceil(_exponent(right))))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _few(_terms(left) + _terms(right))
        case ast.BinOp(left=left, right=right):
            return _few(_terms(left) * _terms(right))
        case ast.Call(args=[argument]) if _degree(argument) <= _MAX_INNER_DEGREE:
            return _few(_TERMS_OF_CALL * _terms(argument))
        case ast.Call():
            raise _TooMuch
    return 1


def _degree(node: ast.expr) -> float:
    """The largest number of non-numeric factors in one term."""
    match node:
        case ast.UnaryOp(operand=operand):
            return _degree(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _degree(left) * _exponent(right)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_degree(left), _degree(right))
        case ast.BinOp(left=left, right=right):
            return _degree(left) + _degree(right)
    return 0 if isinstance(node, ast.Constant) else 1


def _terms_of_power(terms: int, exponent: int) -> int:
    """The number of products of `exponent` factors out of `terms`: the number of terms in the multinomial theorem."""
    return math.comb(exponent + terms - 1, exponent)


def _few(terms: int) -> int:
    if terms > _MAX_TERMS:
        raise _TooMuch
    return terms


GUARDS: dict[str, Callable[[str], bool]] = {
    "binary_matrix": is_literal,
    "countdown": is_arithmetic,
    "intermediate_integration": is_algebra,
    "n_queens": is_literal,
    "puzzle24": is_arithmetic,
    "simple_integration": is_algebra,
    "spiral_matrix": is_literal,
    "string_insertion": is_literal,
}


def evaluates(dataset_class: type) -> bool:
    """Whether a data set's scorer, or a function that it calls within its package, names an evaluator of code."""
    score: Any = dataset_class.score_answer  # type: ignore[attr-defined]
    seen: set[CodeType] = set()
    waiting = [score]
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        named = set(_names(function.__code__))
        if named & EVALUATORS:
            return True
        waiting += [
            found
            for name in named
            for found in (function.__globals__.get(name), getattr(dataset_class, name, None))
            if isinstance(found, FunctionType) and found.__module__.startswith("reasoning_gym")
        ]
    return False


def _names(code: CodeType) -> Iterator[str]:
    """Every global and attribute named in a function's code, including nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
