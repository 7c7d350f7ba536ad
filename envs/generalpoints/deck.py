"""Deals: the cards of an episode, drawn from one random source until they can make the target."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

from rlpost.envs.generalpoints.solvability import solvable
from rlpost.envs.generalpoints.variants import FACES, RANKS, Variant
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


@cache  # takes a quarter of a second for four cards
def problems(variant: Variant, split: Split) -> frozenset[str]:
    """The names of all instances that `deal` draws from. They are not equally likely."""
    hands = (
        variant.values(hand)
        for hand in combinations_with_replacement(RANKS, variant.cards)
        if _may_come(variant, hand)
    )
    return frozenset(
        name
        for values in hands
        if split in (Split.ALL, split_of(name := instance_key(values, variant.target)))
        and solvable(values, variant.target)
    )


def _may_come(variant: Variant, hand: tuple[str, ...]) -> bool:
    return sum(rank in FACES for rank in hand) >= variant.force_face


def deal(variant: Variant, split: Split, rng: random.Random) -> Deal:
    """Deal again until the cards are in the split and can make the target. Raises DealError after MAX_DEALS."""
    for _ in range(MAX_DEALS):
        drawn = draw(variant, rng)
        if split is not Split.ALL and split_of(drawn.instance) is not split:
            continue
        if solvable(drawn.values, variant.target):
            return drawn
    raise DealError(
        f"variant {variant.name!r}: none of {MAX_DEALS} deals of split {split.value!r} can make "
        f"{variant.target}; choose another target, rule or number of cards"
    )
