"""Golden rows of the published verifier, and a second writing of it that calls Python's own evaluator."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.envs.generalpoints.compat import find_formula, grade, passes_float_test, step_limit
from rlpost.envs.generalpoints.outcomes import Outcome
from rlpost.envs.generalpoints.published_solutions import published_solutions, starts_a_solution

VALUES = (11, 2, 3, 10)  # in the order shown
ILLEGAL = "the formula has illegal characters."


def _strict(formula: object) -> str:
    return json.dumps({"formula": formula})


def _python(formula: str) -> float | None:
    """What Python makes of a formula of digits, operators and parentheses; None where it raises."""
    try:
        return eval(formula)  # noqa: S307  the published verifier does just this; the text is the test's own
    except Exception:
        return None


BRACKETS = ["{}{}{}{}{}{}{}", "({}{}{}){}{}{}{}", "({}{}{}{}{}){}{}", "{}{}({}{}{}){}{}", "{}{}({}{}{}{}{})",
            "{}{}{}{}({}{}{})", "({}{}{}){}({}{}{})"]  # fmt: skip


def _stored(values: tuple[int, ...], target: int) -> set[str]:
    """Stored solutions by Python's evaluator: near misses of floating point are told from hits by a wide margin."""
    found = set()
    for (a, b, c, d), (p, q, r), form in product(permutations(values), product("+-*/", repeat=3), BRACKETS):
        text = form.format(a, p, b, q, c, r, d)
        value = _python(text)
        if value is not None and abs(value - target) < 1e-9:
            found.add(text)
    return found


@pytest.mark.parametrize("values", [(11, 2, 3, 10), (3, 3, 8, 8), (6, 6, 6, 6), (1, 4, 5, 6), (1, 1, 1, 1)])
def test_stored_solutions(values: tuple[int, ...]) -> None:
    stored = published_solutions(values, 24)
    assert set(stored) == _stored(values, 24)
    assert list(stored) == sorted(set(stored))


def test_solution_prefixes() -> None:
    stored = published_solutions((1, 4, 5, 6), 24)
    starts = {text[:length] for text in stored for length in range(len(text) + 1)}
    assert all(starts_a_solution(start, stored) for start in starts)
    assert not starts_a_solution("4/(1-6", stored)
    assert not any(starts_a_solution(text + "0", stored) for text in stored)
    assert not starts_a_solution("", ())


def test_other_counts_of_cards_are_refused() -> None:
    with pytest.raises(ValueError, match="4 cards, not for 5"):
        published_solutions((1, 2, 3, 4, 5), 24)


# Cards 11, 2, 3, 10: the rows that do not depend on solutions, of which these cards have none.
ROWS = [
    # row 1: unreadable, or any character besides digits, + - * / ( )
    ("no formula here", Outcome.NO_FORMULA, -3.0, ILLEGAL),
    (_strict("None"), Outcome.NO_FORMULA, -3.0, ILLEGAL),
    (_strict("2 + 3"), Outcome.ILLEGAL_CHARACTER, -3.0, ILLEGAL),
    (_strict("2+3+J+10 "), Outcome.ILLEGAL_CHARACTER, -3.0, ILLEGAL),
    (_strict("11+10+3*2 =24"), Outcome.ILLEGAL_CHARACTER, -3.0, ILLEGAL),
    ("{'formula': '11+10+3*2'}", Outcome.NO_FORMULA, -3.0, ILLEGAL),
    ('{"formula":"11+10+3*2",}', Outcome.NO_FORMULA, -3.0, ILLEGAL),  # no space after the colon
    ('{"formula": "11+10\n+3*2",}', Outcome.NO_FORMULA, -3.0, ILLEGAL),
    # row 2: 3 a piece, and what is misplaced may cost twice
    (_strict("11+10+3*2*"), Outcome.NO_SOLUTION, -1.0, None),  # 6, not 2: the end is not checked
    (_strict("-11+10+3*2"), Outcome.SYNTAX, -3.0, "an operator follows what no operator may follow."),
    (_strict("11+-10+3*2"), Outcome.SYNTAX, -3.0, "an operator follows what no operator may follow."),
    (_strict("11+10+3**2"), Outcome.SYNTAX, -3.0, "an operator follows what no operator may follow."),
    (_strict("(11+10)3*2"), Outcome.SYNTAX, -3.0, "a number follows what no number may follow."),
    (_strict("11+10+3*2)"), Outcome.SYNTAX, -3.0, "a closing parenthesis has no opening one."),
    (
        _strict("3(11+10)*2"),  # the misplaced ( is not opened, so its ) closes nothing
        Outcome.SYNTAX,
        -6.0,
        "an opening parenthesis follows what it may not follow, a closing parenthesis has no opening one.",
    ),
    (
        _strict("11+10+3*2+()"),
        Outcome.SYNTAX,
        -3.0,
        "a closing parenthesis follows what it may not follow.",
    ),
    (_strict("--11+10+3*2"), Outcome.SYNTAX, -6.0, None),
    (_strict("---11+10+3*2"), Outcome.SYNTAX, -9.0, None),
    # row 3: 2 a piece, with the numbers named
    (
        _strict("10+10+3*2"),
        Outcome.WRONG_NUMBERS,
        -4.0,
        "you used numbers too often: [10], you left out numbers: [11].",
    ),
    (
        _strict("12+9+3*2"),  # as if the rule were another: what is right is told
        Outcome.WRONG_NUMBERS,
        -4.0,
        "you used numbers that no card has: [12, 9], you left out numbers: [11, 10].",
    ),
    (_strict("11+10+3"), Outcome.WRONG_NUMBERS, -2.0, "you left out numbers: [2]."),
    (_strict("11+10+3*2*2"), Outcome.WRONG_NUMBERS, -2.0, "you used numbers too often: [2]."),
    (_strict("11+10+3*2*7+2"), Outcome.WRONG_NUMBERS, -2.0, "you used numbers that no card has: [7]."),
    (_strict(""), Outcome.WRONG_NUMBERS, -2.0, "you left out numbers: [11, 2, 3, 10]."),
    (_strict("=24"), Outcome.WRONG_NUMBERS, -2.0, None),
    (
        _strict("-9+11"),  # rows 2 and 3 add up
        Outcome.SYNTAX,
        -7.0,
        "an operator follows what no operator may follow, you used numbers that no card has: [9], "
        "you left out numbers: [2, 3, 10].",
    ),
    # where the original raises
    (_strict(24), Outcome.CRASH, -3.0, None),
    (_strict(None), Outcome.CRASH, -3.0, None),
    (_strict(["11+10"]), Outcome.CRASH, -3.0, None),
    (_strict("1" * 4301), Outcome.CRASH, -3.0, None),
    (_strict("1" * 4300), Outcome.WRONG_NUMBERS, -4.0, None),
    ("x" * 20_001, Outcome.TOO_LONG, -3.0, None),
]


@pytest.mark.parametrize(("answer", "outcome", "reward", "feedback"), ROWS, ids=lambda x: str(x)[:30])
def test_rows(answer: str, outcome: Outcome, reward: float, feedback: str | None) -> None:
    verdict = grade(answer, VALUES, 24)
    assert (verdict.outcome, verdict.reward) == (outcome, reward)
    if feedback is not None:
        assert verdict.feedback == feedback


# Cards 1, 4, 5, 6: 4/(1-5/6) and 6/(5/4-1) are the only ways.
VALUE_ROWS = [
    ("4/(1-5/6)", Outcome.FLOAT_MISMATCH, 0.0, "."),  # row 7
    ("6/(5/4-1)", Outcome.CORRECT, 5.0, "the solution is correct."),  # row 4: exact in floating point
    ("6/(5/4-1)=99", Outcome.CORRECT, 5.0, None),  # nothing after = is read
    ("(6/(5/4-1))", Outcome.CORRECT, 5.0, None),
    ("6+5*4-1", Outcome.NO_SOLUTION, -1.0, "6 begins a solution, but the whole formula matches none."),
    ("6/(5-4)*1", Outcome.NO_SOLUTION, -1.0, "6/(5 begins a solution, but the whole formula matches none."),
    ("6/5/4-1", Outcome.NO_SOLUTION, -1.0, "6/ begins a solution, but the whole formula matches none."),
    ("5+4*6-1", Outcome.NO_SOLUTION, -1.0, "your formula matches no solution."),
    # row 6 takes in what cannot be evaluated at all
    ("6/(5/4-1", Outcome.PARTIAL_SOLUTION, 1.0, None),  # row 5, by one missing parenthesis
    ("(6/(5/4-1)", Outcome.NO_SOLUTION, -1.0, "your formula matches no solution."),
    (
        "6/(5/4-1)*",
        Outcome.NO_SOLUTION,
        -1.0,
        "6/(5/4-1) begins a solution, but the whole formula matches none.",
    ),
    ("06/(5/4-1)", Outcome.NO_SOLUTION, -1.0, "your formula matches no solution."),
    ("6/(5-4-1)", Outcome.NO_SOLUTION, -1.0, "6/(5 begins a solution, but the whole formula matches none."),
    ("\u0666/(5/4-1)", Outcome.NO_SOLUTION, -1.0, "your formula matches no solution."),  # an Arabic 6
]


@pytest.mark.parametrize(("formula", "outcome", "reward", "feedback"), VALUE_ROWS, ids=lambda x: str(x)[:30])
def test_rows_of_the_value(formula: str, outcome: Outcome, reward: float, feedback: str | None) -> None:
    verdict = grade(_strict(formula), (1, 4, 5, 6), 24)
    assert (verdict.outcome, verdict.reward) == (outcome, reward)
    if feedback is not None:
        assert verdict.feedback == feedback


def test_row_7_exact_but_not_in_floating_point() -> None:
    """8/(3-8/3) is 23.99..96 in floating point: right, and yet nothing; and -1 if spelled as no stored solution is."""
    assert _python("8/(3-8/3)") != 24
    verdict = grade(_strict("8/(3-8/3)"), (3, 3, 8, 8), 24)
    assert (verdict.outcome, verdict.reward, verdict.feedback) == (Outcome.FLOAT_MISMATCH, 0.0, ".")
    assert grade(_strict("(8/(3-8/3))"), (3, 3, 8, 8), 24).reward == -1.0


def test_row_8() -> None:
    assert (step_limit().outcome, step_limit().reward) == (Outcome.STEP_LIMIT, -1.0)


@pytest.mark.parametrize("values", [(1, 4, 5, 6), (1, 3, 4, 6), (3, 3, 7, 7), (2, 5, 5, 10), (7, 8, 12, 13)])
def test_float_test_is_that_of_python(values: tuple[int, ...]) -> None:
    stored = published_solutions(values, 24)
    assert any(passes_float_test(text, 24) for text in stored)
    for text in stored:
        assert passes_float_test(text, 24) == (_python(text) == 24)


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        ('{"formula": "1", "formula": "2"}', "2"),
        ('{"formula": "1=1=2"}', "1"),
        ('\n{\n"cards": [\'A\'],\n"number": [1],\n"formula": "1+1=2",\n}', "1+1"),
        ('first "formula": "1" then "formula": "2"', "1"),
        ('[{"formula": "3"}]', "3"),
        ('"formula"', "None"),
        ('{"formul": 1}', "None"),
        ('{"formula" : "1",}', "None"),
        ("[" * 19_000, "None"),
    ],
    ids=lambda text: text[:20],
)
def test_what_the_published_parser_finds(answer: str, formula: str) -> None:
    assert find_formula(answer) == formula


def test_nesting_that_python_refuses() -> None:
    for depth in (199, 200, 201, 250):
        formula = "(" * depth + "6/(5/4-1)" + ")" * depth
        expected = 5.0 if _python(formula) == 24 else -1.0
        assert grade(_strict(formula), (1, 4, 5, 6), 24).reward == expected, depth


_FOLLOWS = {"n": "^o(", "o": "n)", "(": "^o(", ")": "n)"}


def _second_writing(formula: str, values: tuple[int, ...], stored: set[str]) -> float:
    """The reward, written afresh from the published table, over a string of token kinds."""
    found = re.findall(r"[0-9]+|.", formula)
    kinds = "^" + "".join("n" if t.isdigit() else t if t in "()" else "o" for t in found)
    bad = [kinds[i - 1] not in _FOLLOWS[kinds[i]] for i in range(1, len(kinds))]
    depth = reward = 0
    for kind, wrong in zip(kinds[1:], bad, strict=True):
        if wrong:
            reward -= 3
        elif kind == ")":
            reward -= 3 * (depth == 0)
            depth = max(0, depth - 1)
        elif kind == "(":
            depth += 1
    used, cards = Counter(int(t) for t in found if t.isdigit()), Counter(values)
    reward -= 2 * bool(used - cards) + 2 * bool(cards - used)
    if reward:
        return reward
    value = _python(formula)
    if value == 24:
        return 5.0
    if value is None and any(text.startswith(formula) for text in stored):
        return 1.0
    return 0.0 if formula in stored else -1.0


_pieces = st.lists(
    st.sampled_from(["6", "5", "4", "1", "14", "+", "-", "*", "/", "(", ")", "6/(5/4-1", "(5/4-1)", "6/"]),
    max_size=9,
)


@settings(max_examples=400, deadline=None)
@given(_pieces.map("".join))
def test_rewards_equal_a_second_writing(formula: str) -> None:
    stored = set(published_solutions((1, 4, 5, 6), 24))
    assert grade(_strict(formula), (1, 4, 5, 6), 24).reward == _second_writing(formula, (1, 4, 5, 6), stored)


@settings(deadline=None)
@given(
    st.permutations([1, 4, 5, 6]),
    st.tuples(*[st.sampled_from("+-*/")] * 3),
    st.sampled_from(BRACKETS),
    st.integers(0, 1),
)
def test_legal_formulas_equal_a_second_writing(
    order: list[int], ops: tuple[str, str, str], form: str, cut: int
) -> None:
    (a, b, c, d), (p, q, r) = order, ops
    formula = form.format(a, p, b, q, c, r, d)
    formula = formula[: len(formula) - cut]
    stored = set(published_solutions((1, 4, 5, 6), 24))
    assert grade(_strict(formula), (1, 4, 5, 6), 24).reward == _second_writing(formula, (1, 4, 5, 6), stored)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None)) | st.text("{}[]\"': ,formula0123+-*/()=\n\\"))
def test_no_answer_raises(answer: str) -> None:
    grade(answer, VALUES, 24)
    grade('{"formula": ' + answer + "}", VALUES, 24)
