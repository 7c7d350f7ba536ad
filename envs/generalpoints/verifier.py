"""The mended verifier: exact, bounded, with one outcome per attempt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rlpost.envs.generalpoints.arithmetic import evaluate, exact, is_number, to_postfix, tokens
from rlpost.envs.generalpoints.feedback import FeedbackStyle, sentence
from rlpost.envs.generalpoints.outcomes import Outcome, Verdict
from rlpost.envs.generalpoints.parsing import find_formula

REWARDS = {
    Outcome.CORRECT: 5.0,
    Outcome.WRONG_VALUE: -1.0,
    Outcome.DIVISION_BY_ZERO: -1.0,
    Outcome.WRONG_NUMBERS: -2.0,
    Outcome.SYNTAX: -3.0,
    Outcome.ILLEGAL_CHARACTER: -3.0,
    Outcome.NO_FORMULA: -3.0,
    Outcome.TOO_LONG: -3.0,
}

_LEGAL = re.compile(r"[-+*/()0-9 \t\r\n]*")


@dataclass(frozen=True)
class _Finding:
    outcome: Outcome
    value: Fraction | None = None
    numbers: tuple[int, ...] = ()


def _examine(formula: str, values: tuple[int, ...], target: int) -> _Finding:
    """Check characters, then syntax, then numbers, then the value. The first failure names the outcome."""
    if not _LEGAL.fullmatch(formula):
        return _Finding(Outcome.ILLEGAL_CHARACTER)
    infix = tokens(formula)
    postfix = to_postfix(infix)
    if postfix is None:
        return _Finding(Outcome.SYNTAX)
    numbers = tuple(int(token) for token in infix if is_number(token))
    if sorted(numbers) != sorted(values):
        return _Finding(Outcome.WRONG_NUMBERS, numbers=numbers)
    try:
        value = evaluate(postfix, exact)
    except ZeroDivisionError:
        return _Finding(Outcome.DIVISION_BY_ZERO, numbers=numbers)
    return _Finding(Outcome.CORRECT if value == target else Outcome.WRONG_VALUE, value, numbers)


def grade(
    answer: str, values: tuple[int, ...], target: int, style: FeedbackStyle = FeedbackStyle.FULL
) -> Verdict:
    """Grade one answer for cards with the given `values`. Never raises on any string; the work is bounded."""
    formula = find_formula(answer)
    finding = _Finding(formula) if isinstance(formula, Outcome) else _examine(formula, values, target)
    told = sentence(finding.outcome, finding.value, values, target, style)
    return Verdict(finding.outcome, REWARDS[finding.outcome], told, finding.numbers, finding.value)
