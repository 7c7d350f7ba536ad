from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.envs.generalpoints.feedback import FeedbackStyle, sentence
from rlpost.envs.generalpoints.outcomes import Outcome
from rlpost.envs.generalpoints.verifier import REWARDS, grade
from tests.unit.envs import brute_force
from tests.unit.envs.brute_force import Tree

VALUES = (11, 2, 3, 10)  # in the order shown
NUMBERS_TOLD = "the formula must use each of 2, 3, 10, 11 once."
CHARACTERS_TOLD = "the formula has characters other than digits, + - * / and parentheses."
SYNTAX_TOLD = "the formula is not valid arithmetic."

# For the cards 11, 2, 3, 10 and the target 24: formula, outcome, reward, feedback.
GOLDEN = [
    ("(11+3-2)*10/5", Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
    ("11+10+3*2", Outcome.WRONG_VALUE, -1.0, "the formula equals 27, not 24."),
    ("2*11+10/3", Outcome.WRONG_VALUE, -1.0, "the formula equals 76/3, not 24."),
    ("2-3*10-11", Outcome.WRONG_VALUE, -1.0, "the formula equals -39, not 24."),
    ("11+10+3", Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
    ("10+10+3+2", Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
    ("11+10+3+2-0", Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
    ("1/0", Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
    ("2 4", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("-2+3+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("+2+3+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("2*-3+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("9**9**9", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("11//2", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("02+3+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("(2+3)(10+11)", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("2(3)+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("()", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("(2+3+10+11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("2+3)+10+(11", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("2+3+10+11+", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("", Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("2^3", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("2.5*3", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("1e9", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("J+2+3+10", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("__import__('os')", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("2\u00d73", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("\u0662+3+10+11", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),  # an Arabic digit two
    ("2\u00a0+3+10+11", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),  # a no-break space
    ("2+3\x00+10+11", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("\ud800", Outcome.ILLEGAL_CHARACTER, -3.0, CHARACTERS_TOLD),
    ("1" * 201, Outcome.TOO_LONG, -3.0, "the answer is too long."),
    ("(" * 100 + "2" + ")" * 99, Outcome.SYNTAX, -3.0, SYNTAX_TOLD),
    ("9" * 200, Outcome.WRONG_NUMBERS, -2.0, NUMBERS_TOLD),
]


@pytest.mark.parametrize(("formula", "outcome", "reward", "feedback"), GOLDEN, ids=lambda x: str(x)[:24])
def test_every_wrong_kind(formula: str, outcome: Outcome, reward: float, feedback: str) -> None:
    verdict = grade(json.dumps({"formula": formula}), VALUES, 24)
    assert (verdict.outcome, verdict.reward, verdict.feedback) == (outcome, reward, feedback)


def test_no_formula_and_too_long() -> None:
    none = grade("I do not know.", VALUES, 24)
    assert (none.outcome, none.reward) == (Outcome.NO_FORMULA, -3.0)
    assert none.feedback == 'the answer has no "formula".'
    long = grade("x" * 10**6, VALUES, 24)
    assert (long.outcome, long.reward, long.feedback) == (Outcome.TOO_LONG, -3.0, "the answer is too long.")


def test_division_by_zero() -> None:
    verdict = grade('{"formula": "24/(3-3)+1"}', (24, 3, 3, 1), 24)
    assert (verdict.outcome, verdict.reward) == (Outcome.DIVISION_BY_ZERO, -1.0)
    assert verdict.feedback == "the formula divides by zero."
    assert grade('{"formula": "0/0"}', (0, 0), 24).outcome is Outcome.DIVISION_BY_ZERO


@pytest.mark.parametrize(
    "formula",
    [
        "8/(3-8/3)",
        "8/(3-8/3)=24",
        " 8 / ( 3 - 8 / 3 ) = 24",
        "((8))/(((3)-8/3))",
        "8/(3-8/3)=25",
        "8/\n(3-8/3)",
    ],
)
def test_right_answers_are_exact_and_spaces_are_allowed(formula: str) -> None:
    verdict = grade(json.dumps({"formula": formula}), (3, 3, 8, 8), 24)
    assert (verdict.outcome, verdict.reward) == (Outcome.CORRECT, 5.0)


def test_leak_free_feedback_names_no_number_of_the_cards() -> None:
    told = grade('{"formula": "10+2+3+10"}', VALUES, 24, FeedbackStyle.LEAK_FREE).feedback
    assert told == "the formula must use each card's number once."


def test_a_long_value_is_not_printed() -> None:
    value = Fraction(10**24)
    assert (
        sentence(Outcome.WRONG_VALUE, value, (), 24, FeedbackStyle.FULL) == "the formula does not equal 24."
    )
    shorter = sentence(Outcome.WRONG_VALUE, Fraction(10**23), (), 24, FeedbackStyle.FULL)
    assert shorter == f"the formula equals 1{'0' * 23}, not 24."


def test_every_mended_outcome_has_a_meaning_and_was_seen_here() -> None:
    seen = {outcome for _, outcome, _, _ in GOLDEN}
    assert seen | {Outcome.NO_FORMULA, Outcome.DIVISION_BY_ZERO, Outcome.CORRECT} == set(REWARDS)
    assert all(outcome.meaning.endswith(".") for outcome in Outcome)


_leaf = st.integers(0, 13)
_trees: st.SearchStrategy[Tree] = st.recursive(
    _leaf, lambda sub: st.tuples(st.sampled_from("+-*/"), sub, sub), max_leaves=6
)


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else _leaves(tree[1]) + _leaves(tree[2])


@settings(deadline=None)
@given(_trees, st.integers(-30, 30))
def test_random_trees_are_graded_by_their_exact_value(tree: Tree, target: int) -> None:
    verdict = grade(json.dumps({"formula": brute_force.text(tree)}), tuple(_leaves(tree)), target)
    try:
        value = brute_force.value(tree)
    except ZeroDivisionError:
        assert verdict.outcome is Outcome.DIVISION_BY_ZERO
        return
    assert verdict.outcome is (Outcome.CORRECT if value == target else Outcome.WRONG_VALUE)
    if verdict.outcome is Outcome.WRONG_VALUE and len(str(value)) <= 24:
        assert verdict.feedback == f"the formula equals {value}, not {target}."


@settings(deadline=None)
@given(st.lists(st.integers(0, 13), min_size=2, max_size=7), st.data())
def test_precedence_is_that_of_arithmetic(numbers: list[int], data: st.DataObject) -> None:
    """Chains without parentheses, against a witness that does products first and then sums, from left to right."""
    ops = [data.draw(st.sampled_from("+-*/")) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(op + str(n) for op, n in zip(ops, numbers[1:], strict=True))
    terms = [("+", Fraction(numbers[0]))]
    try:
        for op, number in zip(ops, numbers[1:], strict=True):
            if op in "+-":
                terms.append((op, Fraction(number)))
            else:
                sign, term = terms[-1]
                terms[-1] = (sign, term * number if op == "*" else term / number)
    except ZeroDivisionError:
        assert grade(json.dumps({"formula": text}), tuple(numbers), 24).outcome is Outcome.DIVISION_BY_ZERO
        return
    value = sum(term if sign == "+" else -term for sign, term in terms)
    told = grade(json.dumps({"formula": text}), tuple(numbers), 10**9).feedback
    assert told == f"the formula equals {value}, not {10**9}." or len(str(value)) > 24


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec=None)) | st.text("{}[]\"':,formula 0123+-*/()=\n\\"))
def test_no_answer_raises(answer: str) -> None:
    assert grade(answer, VALUES, 24).reward in {-3.0, -2.0, -1.0, 5.0}


@settings(deadline=None)
@given(st.text("0123+-*/() ", max_size=30))
def test_no_formula_raises(formula: str) -> None:
    assert grade(json.dumps({"formula": formula}), VALUES, 24).outcome in REWARDS
