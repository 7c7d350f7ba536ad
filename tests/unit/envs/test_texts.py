"""Texts that models are trained on, word for word: a changed one silently unlearns part of a trained model."""

from __future__ import annotations

from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.prompts import AnswerForm, PromptStyle, answer, prompt, retry
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import VARIANTS

RANKS, VALUES = ("2", "K", "10", "3"), (2, 13, 10, 3)
RULE = "'J', 'Q', and 'K' count as '11', '12', and '13'."


def _solution() -> Expression:
    return next(e for e in solve((2, 10, 10, 3), 24) if e.formula() == "(10-3)*2+10")


def test_short_prompt() -> None:
    assert prompt(PromptStyle.SHORT, VARIANTS["faces_10"], RANKS) == (
        "Make 24. Rule: J=10, Q=10, K=10. Cards: 2, K, 10, 3."
    )
    assert prompt(PromptStyle.SHORT, VARIANTS["target_36"], RANKS).startswith("Make 36. ")


def test_published_prompt_has_the_published_fields() -> None:
    lines = prompt(PromptStyle.PUBLISHED, VARIANTS["faces_11_12_13"], RANKS).split("\n")
    assert lines[0] == ""
    assert [line for line in lines if line.startswith("[")] == ["[Task Description]", "[Input]", "[Output]"]
    assert "Cards: ['2', 'K', '10', '3']" in lines
    assert f"Note that {RULE} Every card must be used exactly once." in lines
    assert f'"cards": [x, y, z, w], where {RULE},' in lines
    assert [line.split(":")[0] for line in lines if line.startswith('"')] == [
        '"cards"',
        '"number"',
        '"formula"',
    ]
    ten = prompt(PromptStyle.PUBLISHED, VARIANTS["faces_10"], RANKS)
    assert "Note that 'J', 'Q', and 'K' count as '10'. Every" in ten


def test_answers() -> None:
    ranks, values = ("2", "K", "10", "3"), (2, 10, 10, 3)
    assert answer(AnswerForm.DIRECT, ranks, values, _solution()) == (
        '{"cards": ["2", "K", "10", "3"], "number": [2, 10, 10, 3], "formula": "(10-3)*2+10"}'
    )
    assert answer(AnswerForm.STEPS, ranks, values, _solution()) == (
        '{"cards": ["2", "K", "10", "3"], "number": [2, 10, 10, 3], '
        '"steps": "10-3=7 left 2 7 10, 7*2=14 left 10 14, 14+10=24", "formula": "(10-3)*2+10"}'
    )
    assert answer(AnswerForm.PUBLISHED, ranks, values, _solution()) == (
        "\n{\n\"cards\": ['2', 'K', '10', '3'],\n\"number\": [2, 10, 10, 3],\n\"formula\": \"(10-3)*2+10=24\",\n}"
    )


def test_steps_with_fractions() -> None:
    (only,) = solve((3, 3, 8, 8), 24)
    assert only.steps() == "8/3=(8/3) left (8/3) 3 8, 3-(8/3)=(1/3) left (1/3) 8, 8/(1/3)=24"
    assert not only.is_simple()


def test_retry() -> None:
    assert retry("the formula divides by zero.") == (
        "You failed this trial because the formula divides by zero. Try again."
    )
