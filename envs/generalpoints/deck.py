"""Deals: the cards of an episode, drawn from one random source until they can make the target."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

from rlpost.envs.generalpoints.solvability import solvable
from rlpost.envs.generalpoints.variants import FACES, RANKS, TRAINED, VARIANTS, Variant
from rlpost.envs.splits import Split, split_of

MAX_DEALS = 10_000


class DealError(RuntimeError):
    """No acceptable deal was found: the variant's rule allows none, or almost none."""


@dataclass(frozen=True)
class Deal:
    variant: Variant
    ranks: tuple[str, ...]  # as shown
    values: tuple[int, ...]  # their values under the variant's rule, in the order shown

    @property
    def instance(self) -> str:
        return instance_key(self.values, self.variant.target)


def instance_key(values: tuple[int, ...], target: int) -> str:
    """The canonical name of a problem: `24:2-3-10-10`. It does not depend on how the cards are named."""
    return f"{target}:" + "-".join(map(str, sorted(values)))


def draw(variant: Variant, rng: random.Random) -> Deal:
    """One deal, solvable or not: independent uniform ranks, one of them J, Q or K if the variant requires it."""
    ranks = [rng.choice(RANKS) for _ in range(variant.cards - variant.force_face)]
    if variant.force_face:
        ranks.append(rng.choice(FACES))
        rng.shuffle(ranks)
    shown = tuple(ranks)
    return Deal(variant, shown, variant.values(shown))


def in_split(variant: Variant, values: tuple[int, ...], split: Split) -> bool:
    """Whether cards with these values are of the split, at the variant's target.

    A hash of target and cards decides, so the same cards may be trained on at one target and evaluated at another. With
    many trained targets, training would then show the cards of almost every evaluation deal. Variants with
    `split_by_cards` are therefore split by cards alone: training has none that evaluation has at any variant's target,
    and evaluation has those that evaluation of the trained rule has.
    """
    if split is Split.ALL:
        return True
    if not variant.split_by_cards:
        return split_of(instance_key(values, variant.target)) is split
    targets = {each.target for each in VARIANTS.values()} if split is Split.TRAIN else {TRAINED.target}
    return all(split_of(instance_key(values, target)) is split for target in targets)


@cache  # takes a quarter of a second for four cards, a second for five
def problems(variant: Variant, split: Split) -> frozenset[str]:
    """The names of all instances that `deal` draws from. They are not equally likely."""
    return frozenset(name for rule in variant.rules() for name in _problems(rule, split))


def _problems(rule: Variant, split: Split) -> Iterator[str]:
    for hand in combinations_with_replacement(RANKS, rule.cards):
        values = rule.values(hand)
        may_come = _faces(hand) >= rule.force_face
        if may_come and in_split(rule, values, split) and solvable(values, rule.target):
            yield instance_key(values, rule.target)


def _faces(ranks: Sequence[str]) -> int:
    return sum(rank in FACES for rank in ranks)


def deal_named(variant: Variant, split: Split, name: str, rng: random.Random) -> Deal:
    """The instance of this name, its cards named and ordered as `deal` would: P(deal | instance) is the same.

    Raises ValueError unless the split of the variant has it.
    """
    if name not in problems(variant, split):
        raise ValueError(
            f"instance={name!r}: not among the {len(problems(variant, split))} of variant {variant.name!r}, split"
            f" {split.value!r}; a name is the target and the sorted values, such as 24:2-3-10-10"
        )
    target, _, cards = name.partition(":")
    values = [int(value) for value in cards.split("-")]
    rule = next(r for r in variant.rules() if (r.target, r.cards) == (int(target), len(values)))
    while True:
        rng.shuffle(values)
        ranks = tuple(rng.choice([rank for rank in RANKS if rule.value(rank) == value]) for value in values)
        # A deal with a forced face card is likelier the more of its cards may be the forced one.
        if not rule.force_face or rng.randrange(rule.cards) < _faces(ranks):
            return Deal(rule, ranks, rule.values(ranks))


def deal(variant: Variant, split: Split, rng: random.Random) -> Deal:
    """Deal again until the cards are in the split and can make the target. Raises DealError after MAX_DEALS."""
    rules = variant.rules()
    for _ in range(MAX_DEALS):
        rule = rng.choice(rules) if variant.mixed else variant
        drawn = draw(rule, rng)
        if in_split(rule, drawn.values, split) and solvable(drawn.values, rule.target):
            return drawn
    raise DealError(
        f"variant {variant.name!r}: none of {MAX_DEALS} deals of split {split.value!r} can make "
        f"{variant.target}; choose another target, rule or number of cards"
    )
