"""Expert conversations for supervised learning: a right answer, or a wrong one, feedback and a right one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import StrEnum

from rlpost.envs.base import ExpertTurn
from rlpost.envs.generalpoints.deck import Deal
from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.outcomes import Outcome, Verdict
from rlpost.envs.generalpoints.prompts import AnswerForm, answer
from rlpost.envs.texts import retry

_WRONG_NUMBERS_SHARE = 0.3
_TRIES = 100  # random combinations tried before other numbers are


class Solutions(StrEnum):
    ANY = "any"  # a different one each time
    ONE = "one"  # always the same for a deal: less to learn, and easier to memorize


def preferred(solutions: Sequence[Expression]) -> Sequence[Expression]:
    """The solutions whose steps are all natural numbers, or all solutions if none is so simple."""
    return [solution for solution in solutions if solution.is_simple()] or solutions


def chosen(solutions: Sequence[Expression], which: Solutions, rng: random.Random) -> Expression:
    """A preferred solution. With ONE it is the shortest; among equals, the first in alphabetical order."""
    if which is Solutions.ANY:
        return rng.choice(preferred(solutions))
    return min(preferred(solutions), key=lambda s: (len(s.formula()), s.formula()))


def _simple_join(left: Expression, right: Expression, rng: random.Random) -> Expression:
    """A random operation whose result is a natural number."""
    if left.value < right.value:
        left, right = right, left
    joined = Expression.combine(rng.choice("+-*/"), left, right)
    if joined is None or joined.value.denominator != 1:
        joined = Expression.combine(rng.choice("+-*"), left, right)
    assert joined is not None
    return joined


def random_combination(values: Sequence[int], rng: random.Random) -> Expression:
    """Join random pairs until one expression is left. Every value on the way is a natural number."""
    pool = [Expression.leaf(value) for value in values]
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        pool.append(_simple_join(left, right, rng))
    return pool[0]


def _other_numbers(values: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """The values, with one of them changed a little."""
    misread = list(values)
    place = rng.randrange(len(misread))
    misread[place] = rng.choice(
        [misread[place] + shift for shift in (-1, 1, 2) if misread[place] + shift > 0]
    )
    return tuple(misread)


def wrong_attempt(
    deal: Deal, form: AnswerForm, grade: Callable[[str], Verdict], rng: random.Random
) -> tuple[str, Verdict]:
    """A well-formed answer that fails, with its verdict: mostly a wrong value, sometimes wrong numbers."""
    values = _other_numbers(deal.values, rng) if rng.random() < _WRONG_NUMBERS_SHARE else deal.values
    for _ in range(_TRIES):
        text = answer(form, deal.ranks, values, random_combination(values, rng))
        verdict = grade(text)
        if verdict.outcome is not Outcome.CORRECT:
            return text, verdict
    values = _other_numbers(deal.values, rng)
    text = answer(form, deal.ranks, values, random_combination(values, rng))
    return text, grade(text)


def demonstrate(
    observation: str,
    deal: Deal,
    solution: Expression,
    form: AnswerForm,
    grade: Callable[[str], Verdict],
    revision: bool,
    rng: random.Random,
) -> list[ExpertTurn]:
    """The conversation from the first observation to the solution. `grade` is the env's own verifier."""
    turns: list[ExpertTurn] = []
    if revision:
        attempt, verdict = wrong_attempt(deal, form, grade, rng)
        turns.append((observation, attempt, False))
        observation = retry(verdict.feedback)
    return [*turns, (observation, answer(form, deal.ranks, deal.values, solution), True)]
