"""Every instance of every variant: solvable, distinct, in its split, none missing, none trained on.

The witness shares no code with the environment: ranks, values, names, split and solvability are written afresh.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from rlpost.envs import registry
from rlpost.envs.base import Enumerated
from rlpost.envs.generalpoints.deck import deal, deal_named
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.envs.generalpoints.variants import FACES, RANKS, VARIANTS, Variant
from rlpost.envs.splits import Split
from tests.unit.envs import brute_force

MIXED = [(target, count) for target in (12, 18, 20, 24, 28, 30, 32) for count in (3, 4)]
RULES = {  # faces, (target, number of cards) of each rule, whether a face card is forced
    "faces_10": (10, 10, 10, [(24, 4)], False),
    "faces_10_mixed": (10, 10, 10, MIXED, False),
    "faces_11_12_13": (11, 12, 13, [(24, 4)], True),
    "faces_12": (12, 12, 12, [(24, 4)], True),
    "faces_7": (7, 7, 7, [(24, 4)], True),
    "faces_5": (5, 5, 5, [(24, 4)], True),
    "faces_10_reworded": (10, 10, 10, [(24, 4)], False),
    "faces_11_12_13_reworded": (11, 12, 13, [(24, 4)], True),
    "faces_10_paraphrased": (10, 10, 10, [(24, 4)], False),
    "faces_11_12_13_paraphrased": (11, 12, 13, [(24, 4)], True),
    "target_36": (10, 10, 10, [(36, 4)], False),
    "five_cards": (10, 10, 10, [(24, 5)], False),
}
RULES |= {  # scored by the trained rule, whatever they say
    f"fake_{name}": (10, 10, 10, [(24, 4)], True)
    for name in ("faces_11_12_13", "faces_12", "faces_7", "faces_5")
}
TRAINED = ("faces_10", "faces_10_mixed")


def is_eval(target: int, cards: Sequence[int]) -> bool:
    name = f"{target}:{'-'.join(str(card) for card in cards)}"
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 < 0.3


def of_split(name: str, split: str, target: int, cards: Sequence[int]) -> bool:
    """By target and cards; for the mixed variant by the cards, at 24 (evaluation) or at 24 and at 36 (training)."""
    if name != "faces_10_mixed":
        return is_eval(target, cards) == (split == "eval")
    return is_eval(24, cards) if split == "eval" else not (is_eval(24, cards) or is_eval(36, cards))


@cache
def makes(target: int, cards: tuple[int, ...]) -> bool:
    return bool(np.isclose(brute_force.reachable(cards), target, rtol=0, atol=1e-7).any())


def witness(name: str, split: str) -> Iterator[str]:
    """The names of all instances, from every hand that can be dealt."""
    *faces, rules, forced = RULES[name]
    value = {**{str(n): n for n in range(2, 11)}, "A": 1, **dict(zip("JQK", faces, strict=True))}
    for target, count in rules:
        dealt = {
            tuple(sorted(value[rank] for rank in hand))
            for hand in combinations_with_replacement(value, count)
            if not forced or {*hand} & {*"JQK"}
        }
        for cards in dealt:
            if of_split(name, split, target, cards) and makes(target, cards):
                yield f"{target}:{'-'.join(map(str, cards))}"


def names(variant: str, split: str) -> list[str]:
    return list(GeneralPoints().instance_names(variant, split))


def cards_of(name: str) -> tuple[str, ...]:
    return tuple(name.split(":")[1].split("-"))


def test_every_variant_is_tested_here() -> None:
    assert set(RULES) == set(VARIANTS)
    assert set(TRAINED) == {name for name, variant in VARIANTS.items() if not variant.held_out}


@pytest.mark.parametrize("variant", RULES)
def test_the_list_is_every_solvable_deal_of_the_evaluation_split_once(variant: str) -> None:
    listed = names(variant, "eval")
    assert listed == sorted(witness(variant, "eval"))
    assert len(set(listed)) == len(listed)
    assert GeneralPoints().instances(variant, "eval") == len(listed)


@pytest.mark.parametrize("variant", TRAINED)
def test_the_list_is_every_solvable_deal_of_the_training_split_once(variant: str) -> None:
    assert names(variant, "train") == sorted(witness(variant, "train"))


@pytest.mark.parametrize("variant", RULES)
def test_no_evaluated_deal_is_trained_on(variant: str) -> None:
    trained = {name for each in TRAINED for name in names(each, "train")}
    assert not trained & {*names(variant, "eval")}


@pytest.mark.parametrize("variant", RULES)
def test_mixed_training_has_the_cards_of_no_evaluated_deal_at_any_target(variant: str) -> None:
    trained = {cards_of(name) for name in names("faces_10_mixed", "train")}
    assert not trained & {cards_of(name) for name in names(variant, "eval")}


def test_mixed_evaluation_has_cards_that_the_trained_rule_never_trains_on() -> None:
    trained = {cards_of(name) for name in names("faces_10", "train")}
    assert not trained & {cards_of(name) for name in names("faces_10_mixed", "eval")}


def test_mixed_training_has_many_more_deals() -> None:
    assert len(names("faces_10", "train")) == 372
    assert len(names("faces_10_mixed", "train")) == 2107


@pytest.mark.parametrize("variant", RULES)
def test_a_reset_by_name_deals_it_and_the_expert_solves_it(variant: str) -> None:
    env = registry.make("generalpoints", verify_iter=1)
    assert isinstance(env, Enumerated)
    rng = random.Random(0)
    listed = names(variant, "eval")
    for seed, name in enumerate(rng.sample(listed, 5 if variant == "five_cards" else 25)):
        options = {"variant": variant, "split": "eval", "instance": name}
        observation, info = env.reset(seed=seed, options=options)
        assert info["instance"] == name
        assert tuple(map(str, sorted(info["values"]))) == cards_of(name)
        assert observation.startswith(f"Make {name.split(':')[0]}. ")
        assert env.reset(seed=seed, options=options) == (observation, info)
        ((_, answer, _),) = env.unwrapped.expert(False, rng)  # type: ignore[attr-defined]
        assert env.step(answer)[4]["success"]


def probabilities(variant: Variant, values: tuple[int, ...]) -> dict[tuple[str, ...], Fraction]:
    """P(ranks as shown | sorted values), over every ordered deal; a forced face card may be at any of its places."""
    weights = {
        ranks: sum(rank in FACES for rank in ranks) if variant.force_face else 1
        for ranks in product(RANKS, repeat=len(values))
        if tuple(sorted(variant.values(ranks))) == values
    }
    total = sum(weights.values())
    return {ranks: Fraction(weight, total) for ranks, weight in weights.items() if weight}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("faces_7", "24:3-7-8-9"),  # the seven must be a face card
        ("faces_7", "24:3-3-7-7"),
        ("faces_10", "24:1-2-7-10"),
        ("faces_11_12_13", "24:1-1-11-13"),
    ],
)
def test_a_named_deal_is_dealt_as_a_drawn_one(variant: str, name: str) -> None:
    """Expected counts of each deal, within five standard deviations of 6,000 draws."""
    rule, rng, draws = VARIANTS[variant], random.Random(3), 6000
    expected = probabilities(rule, tuple(map(int, cards_of(name))))
    found = Counter(deal_named(rule, Split.ALL, name, rng).ranks for _ in range(draws))
    assert found.keys() <= expected.keys()
    for ranks, probability in expected.items():
        p = float(probability)
        assert abs(found[ranks] - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5 + 1


@pytest.mark.parametrize("name", ["24:1-1-1-1", "20:2-3-10-10", "24:2-3-10-10", "", "24:", "x"])
def test_other_names_are_refused(name: str) -> None:
    """One that cannot make 24, one of another target, one of the training split, and texts that are no names."""
    with pytest.raises(ValueError, match="not among the 194 of variant 'faces_10', split 'eval'"):
        GeneralPoints().reset(options={"variant": "faces_10", "split": "eval", "instance": name})


def test_mixed_deals_have_every_target_and_number_of_cards() -> None:
    rng = random.Random(1)
    dealt = [deal(VARIANTS["faces_10_mixed"], Split.TRAIN, rng) for _ in range(1500)]
    assert {(each.variant.target, each.variant.cards) for each in dealt} == set(MIXED)
    assert all(makes(each.variant.target, tuple(sorted(each.values))) for each in dealt)
    assert {each.instance for each in dealt} <= {*names("faces_10_mixed", "train")}
    assert 0.1 < sum(each.variant.cards == 3 for each in dealt) / len(dealt) < 0.4


def test_every_rule_of_a_variant_that_is_not_mixed_is_itself() -> None:
    assert all(each.rules() == (each,) for each in VARIANTS.values() if not each.mixed)
