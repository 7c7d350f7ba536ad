"""The published verifier with all its faults, for language-only play (arXiv 2501.17161).

Penalties add up, any space is illegal, the value is compared in floating point, the feedback reveals card values and
the start of a solution, and one attempt beyond the limit is punished without being read. The sentences are our own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from rlpost.envs.generalpoints.arithmetic import evaluate, is_number, to_postfix, tokens
from rlpost.envs.generalpoints.outcomes import Outcome, Verdict
from rlpost.envs.generalpoints.published_solutions import published_solutions, starts_a_solution
from rlpost.envs.parsing import MAX_ANSWER

CORRECT = 5.0
PARTIAL_SOLUTION = 1.0
NO_SOLUTION = -1.0
STEP_LIMIT = -1.0
WRONG_NUMBER = -2.0
ILLEGAL_FORMULA = -3.0

_FIELD = re.compile(r'"formula": "(.*?)"')
_NOTHING_FOUND = "None"  # graded as a formula, and therefore illegal
_MAX_DIGITS = 4300  # Python refuses to read longer integers
_MAX_NESTING = 200  # Python refuses to parse deeper parentheses

_NUMBER_OR_GROUP_BEFORE = frozenset({"number", ")"})
_MISPLACED = {
    "number": "a number follows what no number may follow",
    "operator": "an operator follows what no operator may follow",
    "(": "an opening parenthesis follows what it may not follow",
    ")": "a closing parenthesis follows what it may not follow",
}
_UNMATCHED = "a closing parenthesis has no opening one"


def step_limit() -> Verdict:
    """Row 8: the attempt after the last graded one, whatever it contains."""
    return Verdict(Outcome.STEP_LIMIT, STEP_LIMIT, "the step limit is reached")


def find_formula(answer: str) -> object:
    """The text that the published parser reads as the formula; any JSON value, if the answer is strict JSON."""
    try:
        formula = json.loads(answer)["formula"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        match = _FIELD.search(answer)
        formula = match[1] if match else _NOTHING_FOUND
    return formula.split("=")[0] if isinstance(formula, str) else formula


def _kind(token: str) -> str:
    if is_number(token):
        return "number"
    return token if token in "()" else "operator"


def _sequence_errors(infix: list[str]) -> Iterator[str]:
    """Rows 2a to 2e. A misplaced parenthesis counts as neither opened nor closed, so one mistake may cost twice."""
    previous, depth = "", 0
    for token in infix:
        kind = _kind(token)
        follows_value = previous in _NUMBER_OR_GROUP_BEFORE
        if follows_value != (kind in ("operator", ")")):
            yield _MISPLACED[kind]
        elif kind == "(":
            depth += 1
        elif kind == ")" and depth == 0:
            yield _UNMATCHED
        elif kind == ")":
            depth -= 1
        previous = kind


def _number_errors(used: Counter[int], cards: Counter[int]) -> Iterator[str]:
    """Rows 3a to 3c, which name the numbers, including the cards' true ones."""
    unknown = [number for number in used if number not in cards]
    overused = [number for number in used if used[number] > cards[number]]
    unused = [number for number in cards if cards[number] > used[number]]
    if unknown:
        yield f"you used numbers that no card has: {unknown}"
    elif overused:
        yield f"you used numbers too often: {overused}"
    if unused:
        yield f"you left out numbers: {unused}"


def _floating_value(infix: list[str]) -> float | None:
    """The formula's value in Python's own arithmetic, or None if Python raises."""
    depth = deepest = 0
    for token in infix:
        depth += (token == "(") - (token == ")")
        deepest = max(deepest, depth)
    postfix = to_postfix(infix)
    if postfix is None or deepest > _MAX_NESTING:
        return None
    try:
        return evaluate(postfix, int)
    except ZeroDivisionError:
        return None


def passes_float_test(formula: str, target: int) -> bool:
    """Whether a right formula is also right in floating point, as the published verifier requires."""
    return _floating_value(tokens(formula)) == target


def _longest_start(infix: list[str], solutions: tuple[str, ...]) -> str:
    """The longest run of whole tokens that starts a stored solution."""
    text = ""
    for token in infix:
        if not starts_a_solution(text + token, solutions):
            break
        text += token
    return text


def _grade_value(infix: list[str], values: tuple[int, ...], target: int) -> tuple[Outcome, float, str]:
    """Rows 4 to 7, for a formula whose tokens and numbers are right."""
    formula = "".join(infix)
    value = _floating_value(infix)
    if value == target:
        return Outcome.CORRECT, CORRECT, "the solution is correct."
    solutions = published_solutions(values, target)
    if value is None and starts_a_solution(formula, solutions):
        return Outcome.PARTIAL_SOLUTION, PARTIAL_SOLUTION, "this is part of a solution."
    start = _longest_start(infix, solutions)
    if start == formula:
        return Outcome.FLOAT_MISMATCH, 0.0, "."
    if not start:
        return Outcome.NO_SOLUTION, NO_SOLUTION, "your formula matches no solution."
    told = f"{start} begins a solution, but the whole formula matches none."
    return Outcome.NO_SOLUTION, NO_SOLUTION, told


def _grade_tokens(infix: list[str], values: tuple[int, ...], target: int) -> Verdict:
    numbers = tuple(int(token) for token in infix if is_number(token))
    sequence = list(_sequence_errors(infix))
    usage = list(_number_errors(Counter(numbers), Counter(values)))
    if not sequence and not usage:
        outcome, reward, told = _grade_value(infix, values, target)
        return Verdict(outcome, reward, told, numbers, _floating_value(infix))
    reward = ILLEGAL_FORMULA * len(sequence) + WRONG_NUMBER * len(usage)
    outcome = Outcome.SYNTAX if sequence else Outcome.WRONG_NUMBERS
    return Verdict(outcome, reward, ", ".join([*sequence, *usage]) + ".", numbers)


def grade(answer: str, values: tuple[int, ...], target: int) -> Verdict:
    """Grade one answer for cards with the given `values`, in the order shown. Never raises on any string.

    If the published code raises (a formula that is not a string, an integer too long for Python), the outcome is CRASH,
    with the reward of an illegal formula. Answers beyond MAX_ANSWER characters, which its own generation limit cannot
    produce, are TOO_LONG, with the same reward.
    """
    if len(answer) > MAX_ANSWER:
        return Verdict(Outcome.TOO_LONG, ILLEGAL_FORMULA, "the answer is too long.")
    formula = find_formula(answer)
    if not isinstance(formula, str):
        return Verdict(Outcome.CRASH, ILLEGAL_FORMULA, "the formula is not a text.")
    infix = tokens(formula)
    if "".join(infix) != formula:
        outcome = Outcome.NO_FORMULA if formula == _NOTHING_FOUND else Outcome.ILLEGAL_CHARACTER
        return Verdict(outcome, ILLEGAL_FORMULA, "the formula has illegal characters.")
    if any(len(token) > _MAX_DIGITS for token in infix):
        return Verdict(Outcome.CRASH, ILLEGAL_FORMULA, "the formula has a number too long to read.")
    return _grade_tokens(infix, values, target)
