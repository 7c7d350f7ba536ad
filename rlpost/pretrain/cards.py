"""Conversations about general arithmetic: reading a stated rule, computing in steps, combining numbers, revising.

No conversation states a rule that a registered variant of GeneralPoints uses, trained or held out, in any words, and
none combines cards to a registered variant's target. Rules are stated in several wordings, so that their words have to
be read; none is a wording of the variants `..._paraphrased`, which are for evaluation alone.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.prompts import AnswerForm, PromptStyle, answer, prompt, retry
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import FACES, RANKS, VARIANTS, Variant
from rlpost.envs.generalpoints.wording import short_rule, statements, varied_rule
from rlpost.pretrain.talk import Conversation, Message, Mixture

RESERVED_RULES = frozenset(variant.faces for variant in VARIANTS.values())
_STATED = "|".join(re.escape(text) for faces in RESERVED_RULES for text in statements(faces))
# What goes on after it is another rule: '5' for all three is no part of '5', '1', and '13'.
_RESERVED_STATEMENT = re.compile(rf"(?:{_STATED})(?!\d|, ')")
# The search for these is left to runs, for SFT and RL to learn. A base that has it already shows neither's effect.
RESERVED_TARGETS = frozenset(rule.target for variant in VARIANTS.values() for rule in variant.rules())
# Ten to either side of 24.
SOLVED_TARGETS = tuple(target for target in range(14, 35) if target not in RESERVED_TARGETS)
MAX_TARGET = 150
MAX_FACE_VALUE = 15
MAX_NUMBER = 13
FIXED_WORDING = 0.5  # share of the rules that are stated in the prompt's own words


@dataclass(frozen=True)
class Deal:
    """A combination task: the cards as shown, their values, the rule and its target."""

    variant: Variant
    ranks: tuple[str, ...]
    values: tuple[int, ...]
    solution: Expression
    rule: str | None  # the rule in words; None: the prompt's own


def random_rule(rng: random.Random) -> tuple[int, int, int]:
    """Values for J, Q, K under a rule that no registered variant uses. In a third of the cases all three are equal."""
    while True:
        one = rng.randint(1, MAX_FACE_VALUE)
        faces = (one, one, one)
        if rng.random() < 2 / 3:
            faces = (one, rng.randint(1, MAX_FACE_VALUE), rng.randint(1, MAX_FACE_VALUE))
        if faces not in RESERVED_RULES:
            return faces


def random_combination(values: tuple[int, ...], rng: random.Random) -> Expression:
    """Join random pairs with random operations until one is left. All values stay natural numbers of moderate size."""
    pool = [Expression.leaf(value) for value in values]
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        if left.value < right.value:
            left, right = right, left
        joined = Expression.combine(rng.choice("+-**/"), left, right)
        if joined is None or joined.value.denominator != 1 or joined.value > MAX_TARGET:
            joined = Expression.combine(rng.choice("+-"), left, right)
        assert joined is not None
        pool.append(joined)
    return pool[0]


def _cards(rng: random.Random, count: int, with_face: bool) -> tuple[str, ...]:
    if not with_face:
        return tuple(str(rng.randint(1, MAX_NUMBER)) for _ in range(count))
    ranks = [rng.choice(FACES), *(rng.choice(RANKS) for _ in range(count - 1))]
    rng.shuffle(ranks)
    return tuple(ranks)


def _variant(rng: random.Random, target: int) -> Variant:
    return Variant("random", random_rule(rng), held_out=False, summary="", target=target)


def _values(variant: Variant, ranks: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(rank) if rank.isdigit() else variant.value(rank) for rank in ranks)


def _rule(variant: Variant, rng: random.Random) -> str | None:
    """The rule in words, one of those of env_args.wording=varied; or None, the prompt's own words."""
    return None if rng.random() < FIXED_WORDING else varied_rule(variant.faces, rng)


def hindsight_deal(rng: random.Random, with_face: bool) -> Deal:
    """A random combination whose result becomes the target."""
    while True:
        ranks = _cards(rng, rng.choice((2, 3, 3, 4, 4, 4, 4)), with_face)
        drawn = _variant(rng, 0)
        values = _values(drawn, ranks)
        solution = random_combination(values, rng)
        if solution.value not in RESERVED_TARGETS:
            variant = replace(drawn, target=int(solution.value))
            return Deal(variant, ranks, values, solution, _rule(variant, rng))


@lru_cache(maxsize=8192)
def _simple_solutions(values: tuple[int, ...], target: int) -> tuple[Expression, ...]:
    return tuple(e for e in solve(values, target) if e.is_simple())


def solved_deal(rng: random.Random, with_face: bool) -> Deal:
    """Four numbers or cards that make a given target, with one of their simple solutions."""
    while True:
        ranks = _cards(rng, 4, with_face)
        variant = _variant(rng, rng.choice(SOLVED_TARGETS))
        values = _values(variant, ranks)
        simple = _simple_solutions(tuple(sorted(values)), variant.target)
        if simple:
            return Deal(variant, ranks, values, rng.choice(simple), _rule(variant, rng))


def _random_deal(rng: random.Random) -> Deal:
    make = hindsight_deal if rng.random() < 0.4 else solved_deal
    return make(rng, rng.random() < 0.4)


def _style(rng: random.Random) -> tuple[PromptStyle, AnswerForm]:
    if rng.random() < 0.92:
        return PromptStyle.SHORT, AnswerForm.STEPS if rng.random() < 0.95 else AnswerForm.DIRECT
    return PromptStyle.PUBLISHED, rng.choice((AnswerForm.STEPS, AnswerForm.PUBLISHED))


def combine(rng: random.Random) -> Conversation:
    deal = _random_deal(rng)
    style, form = _style(rng)
    text = answer(form, deal.ranks, deal.values, deal.solution)
    return (Message(prompt(style, deal.variant, deal.ranks, deal.rule), text),)


def _feedback(deal: Deal, attempt: Expression, right_numbers: bool) -> str:
    if not right_numbers:
        return f"the formula must use each of {', '.join(map(str, sorted(deal.values)))} once."
    return f"the formula equals {attempt.value}, not {deal.variant.target}."


def _wrong_attempt(deal: Deal, rng: random.Random) -> tuple[Expression, tuple[int, ...]]:
    values = list(deal.values)
    if rng.random() < 0.3:
        values[rng.randrange(len(values))] += rng.choice((-1, 1, 2))
    while True:
        attempt = random_combination(tuple(values), rng)
        wrong = attempt.value != deal.variant.target or sorted(values) != sorted(deal.values)
        if wrong and attempt.value not in RESERVED_TARGETS:
            return attempt, tuple(values)
        # Every combination may hit the target, so draw other numbers.
        values = [rng.randint(1, MAX_NUMBER) for _ in values]


def revise(rng: random.Random) -> Conversation:
    """One or two wrong attempts with the verifier's feedback, then a right answer. Only the last is trained on."""
    deal = _random_deal(rng)
    style, form = _style(rng)
    user = prompt(style, deal.variant, deal.ranks, deal.rule)
    messages = []
    for _ in range(rng.choice((1, 1, 2))):
        attempt, values = _wrong_attempt(deal, rng)
        messages.append(Message(user, answer(form, deal.ranks, values, attempt), learn=False))
        user = retry(_feedback(deal, attempt, sorted(values) == sorted(deal.values)))
        if form is AnswerForm.STEPS and rng.random() < 0.5:
            user = retry("the formula must use each card's number once.") if values != deal.values else user
    messages.append(Message(user, answer(form, deal.ranks, deal.values, deal.solution)))
    return tuple(messages)


def read_cards(rng: random.Random) -> Conversation:
    ranks = _cards(rng, rng.randint(2, 5), with_face=True)
    variant = _variant(rng, 0)
    rule = _rule(variant, rng) or short_rule(variant.faces)
    question = f"Read the cards. Rule: {rule}. Cards: {', '.join(ranks)}."
    return (Message(question, json.dumps({"cards": ranks, "number": _values(variant, ranks)})),)


def arithmetic(rng: random.Random) -> Conversation:
    right = rng.randint(0, 20)
    left = rng.randint(right, MAX_TARGET // 2)
    op = rng.choice("+-*/")
    if op == "/":
        right = max(right, 1)
        left = right * rng.randint(0, 15)
    result = Expression.combine(op, Expression.leaf(left), Expression.leaf(right))
    assert result is not None
    return (Message(f"Compute {left}{op}{right}.", json.dumps({"value": int(result.value)})),)


def evaluate(rng: random.Random) -> Conversation:
    values = tuple(rng.randint(1, 20) for _ in range(rng.randint(2, 4)))
    tree = random_combination(values, rng)
    text = json.dumps({"steps": tree.steps(), "value": int(tree.value)})
    return (Message(f"Evaluate {tree.formula()}.", text),)


MIXTURE: Mixture = (
    (combine, 0.65),
    (revise, 0.15),
    (read_cards, 0.05),
    (arithmetic, 0.08),
    (evaluate, 0.07),
)


def states_reserved_rule(talk: Conversation) -> bool:
    """Whether any text states a rule of a registered variant. False for every conversation that this module makes."""
    return any(_RESERVED_STATEMENT.search(message.user) for message in talk)
