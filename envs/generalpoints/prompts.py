"""What the model reads and the expert writes: prompts in two styles, answers in three forms."""

from __future__ import annotations

import json
from enum import StrEnum

from envs.generalpoints.expression import Expression
from envs.generalpoints.variants import Variant
from envs.texts import retry as retry  # one of this game's texts, wherever it is written


class PromptStyle(StrEnum):
    PUBLISHED = "published"  # the fields and the order of the published prompt, in our words
    SHORT = "short"  # one line, for small models


class AnswerForm(StrEnum):
    STEPS = "steps"  # strict JSON, the computation in view before the formula
    DIRECT = "direct"  # strict JSON: cards, number, formula
    PUBLISHED = "published"  # the published layout: single-quoted cards, trailing comma, not valid JSON


_PUBLISHED = """
[Task Description]
You are a skilled player of the {target}-points card game. You are given {count} cards.
Note that {rule} Every card must be used exactly once.
Your goal is to write a formula that evaluates to {target} with the numbers of the cards and the operators '+', '-', '*', '/', '(', ')' and '='.

[Input]
Cards: {cards}

[Output]
{{
"cards": [x, y, z, w], where {rule},
"number": [a, b, c, d], the values of the cards,
"formula": 'an equation that equals {target}',
}}
"""  # noqa: E501

_SHORT = "Make {target}. Rule: {rule}. Cards: {cards}."


def rule_sentence(faces: tuple[int, int, int]) -> str:
    """The rule as the published prompt states it, full stop included."""
    if len(set(faces)) == 1:
        return f"'J', 'Q', and 'K' count as '{faces[0]}'."
    return "'J', 'Q', and 'K' count as '{}', '{}', and '{}'.".format(*faces)


def short_rule(faces: tuple[int, int, int]) -> str:
    return "J={}, Q={}, K={}".format(*faces)


def prompt(style: PromptStyle, variant: Variant, ranks: tuple[str, ...]) -> str:
    """The first observation of an episode: the rule is always stated, held out or not."""
    if style is PromptStyle.SHORT:
        return _SHORT.format(target=variant.target, rule=short_rule(variant.faces), cards=", ".join(ranks))
    cards = "[" + ", ".join(f"'{rank}'" for rank in ranks) + "]"
    rule = rule_sentence(variant.faces)
    return _PUBLISHED.format(target=variant.target, count=len(ranks), rule=rule, cards=cards)


def answer(form: AnswerForm, ranks: tuple[str, ...], values: tuple[int, ...], formula: Expression) -> str:
    """An answer in the expert's form. The formula is not checked here: wrong ones make practice material."""
    if form is AnswerForm.PUBLISHED:
        cards = "[" + ", ".join(f"'{rank}'" for rank in ranks) + "]"
        equation = f"{formula.formula()}={formula.value}"
        return f'\n{{\n"cards": {cards},\n"number": {list(values)},\n"formula": "{equation}",\n}}'
    fields: dict[str, object] = {"cards": list(ranks), "number": list(values)}
    if form is AnswerForm.STEPS:
        fields["steps"] = formula.steps()
    return json.dumps({**fields, "formula": formula.formula()})
