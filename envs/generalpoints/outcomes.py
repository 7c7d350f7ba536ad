"""The named outcomes of an attempt, and the verdict that carries one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from rlpost.envs.causes import (
    ARITHMETIC,
    FAULT,
    NUMBER_MISUSE,
    RULE_MISREAD,
    RULE_OBEYED,
    SOLVED,
    SYNTAX,
    TRUNCATION,
    UNFINISHED,
)


class Outcome(Enum):
    """The outcome of one attempt; the value explains it. The second group exists in compat mode only."""

    CORRECT = "The formula uses every card's number once and equals the target."
    WRONG_VALUE = "The numbers are right, but the formula equals something else."
    DIVISION_BY_ZERO = "The numbers are right, but the formula divides by zero."
    WRONG_NUMBERS = "The formula does not use exactly the cards' numbers, each once."
    RULE_MISREAD = (
        "Wrong, but as the trained rule would have it: its numbers, its target or its number of cards."
    )
    STATED_RULE = "Fake rules only: wrong, but with the numbers of the rule that the prompt states."
    SYNTAX = "The formula is not arithmetic: operators, numbers or parentheses stand where none may."
    ILLEGAL_CHARACTER = "The formula has characters other than digits, + - * / and parentheses."
    NO_FORMULA = "No formula could be found in the answer."
    TOO_LONG = "The answer or its formula is longer than is read at all."

    NO_SOLUTION = "Published row 6: tokens and numbers pass, but the formula fails or has another value."
    PARTIAL_SOLUTION = "Published row 5: the formula cannot be evaluated, but some solution starts with it."
    FLOAT_MISMATCH = "Published row 7: an exact solution whose floating-point value misses the target."
    STEP_LIMIT = "Published row 8: an attempt beyond the limit, which is not looked at."
    CRASH = "The published verifier raises an exception on this answer; it has no reward for it."

    @property
    def meaning(self) -> str:
        return self.value


CAUSES = {
    Outcome.CORRECT.name: SOLVED,
    Outcome.RULE_MISREAD.name: RULE_MISREAD,
    Outcome.STATED_RULE.name: RULE_OBEYED,
    Outcome.WRONG_VALUE.name: ARITHMETIC,
    Outcome.DIVISION_BY_ZERO.name: ARITHMETIC,
    Outcome.NO_SOLUTION.name: ARITHMETIC,
    Outcome.FLOAT_MISMATCH.name: ARITHMETIC,
    Outcome.WRONG_NUMBERS.name: NUMBER_MISUSE,
    Outcome.SYNTAX.name: SYNTAX,
    Outcome.ILLEGAL_CHARACTER.name: SYNTAX,
    Outcome.NO_FORMULA.name: SYNTAX,
    Outcome.PARTIAL_SOLUTION.name: SYNTAX,
    Outcome.TOO_LONG.name: TRUNCATION,
    Outcome.STEP_LIMIT.name: UNFINISHED,
    Outcome.CRASH.name: FAULT,
}


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reward: float
    feedback: str  # a sentence for the player
    numbers: tuple[int, ...] = ()  # the numbers in the formula, if it could be parsed
    value: Fraction | float | None = None  # the value of a formula with the right numbers
