"""The texts for the model and of the expert: prompts in two styles, answers in three forms."""

from __future__ import annotations

import json
from enum import StrEnum

from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.variants import Variant
from rlpost.envs.generalpoints.wording import long_rule, short_rule
from rlpost.envs.texts import retry as retry  # part of this module's interface, like the game's other texts


class PromptStyle(StrEnum):
    PUBLISHED = "published"  # the fields and the order of the published prompt, in our words
    SHORT = "short"  # one line, for small models


class AnswerForm(StrEnum):
    STEPS = "steps"  # strict JSON, with the computation before the formula
    DIRECT = "direct"  # strict JSON: cards, number, formula
    PUBLISHED = "published"  # the published layout: single-quoted cards, trailing comma, not valid JSON


_PUBLISHED = """
[Task Description]
You are a skilled player of the {target}-points card game. You are given {count} cards.
Note that {rule}. Every card must be used exactly once.
Your goal is to write a formula that evaluates to {target} with the numbers of the cards and the operators '+', '-', '*', '/', '(', ')' and '='.

[Input]
Cards: {cards}

[Output]
{{
"cards": [x, y, z, w], where {rule}.,
"number": [a, b, c, d], the values of the cards,
"formula": 'an equation that equals {target}',
}}
"""  # noqa: E501

_SHORT = "Make {target}. Rule: {rule}. Cards: {cards}."


def prompt(style: PromptStyle, variant: Variant, ranks: tuple[str, ...], rule: str | None = None) -> str:
    """The first observation of an episode. The rule is always stated, whether or not it is held out.

    `rule` is the rule in words, without a full stop; None: in the style's own words.
    """
    if style is PromptStyle.SHORT:
        stated = rule or short_rule(variant.stated_faces)
        return _SHORT.format(target=variant.target, rule=stated, cards=", ".join(ranks))
    cards = "[" + ", ".join(f"'{rank}'" for rank in ranks) + "]"
    stated = rule or long_rule(variant.stated_faces)
    return _PUBLISHED.format(target=variant.target, count=len(ranks), rule=stated, cards=cards)


def answer(form: AnswerForm, ranks: tuple[str, ...], values: tuple[int, ...], formula: Expression) -> str:
    """An answer in the expert's form. The formula is not checked here, since wrong ones are practice material."""
    if form is AnswerForm.PUBLISHED:
        cards = "[" + ", ".join(f"'{rank}'" for rank in ranks) + "]"
        equation = f"{formula.formula()}={formula.value}"
        return f'\n{{\n"cards": {cards},\n"number": {list(values)},\n"formula": "{equation}",\n}}'
    fields: dict[str, object] = {"cards": list(ranks), "number": list(values)}
    if form is AnswerForm.STEPS:
        fields["steps"] = formula.steps()
    return json.dumps({**fields, "formula": formula.formula()})
