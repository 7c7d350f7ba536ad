from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest

from rlpost.envs.generalpoints import deck
from rlpost.envs.generalpoints.deck import DealError, deal, draw, instance_key, problems
from rlpost.envs.generalpoints.solvability import solvable
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import FACES, RANKS, VARIANTS, Variant
from rlpost.envs.splits import Split, split_of
from tests.unit.envs import brute_force

TRAINED, HELD_OUT = VARIANTS["faces_10"], VARIANTS["faces_11_12_13"]


@pytest.mark.parametrize(("highest", "hands", "makeable"), [(10, 715, 566), (13, 1820, 1362)])
def test_solvable_hands_are_those_of_brute_force(highest: int, hands: int, makeable: int) -> None:
    every = brute_force.hands(highest)
    witness = brute_force.solvable(every, 24)
    assert (len(every), sum(witness)) == (hands, makeable)
    assert [solvable(hand, 24) for hand in every] == witness


def test_solvable_for_another_target_is_that_of_brute_force() -> None:
    every = brute_force.hands(10)
    assert [solvable(hand, 36) for hand in every] == brute_force.solvable(every, 36)


def _probability(variant: Variant) -> float:
    """P(a deal can make the target), over every ordered deal of the rule in question."""
    last = FACES if variant.force_face else RANKS
    deals: Counter[tuple[int, ...]] = Counter()
    for ranks in product(*[RANKS] * (variant.cards - 1), last):
        deals[tuple(sorted(variant.values(ranks)))] += 1
    good = sum(count for values, count in deals.items() if solvable(values, variant.target))
    return float(Fraction(good, deals.total()))


@pytest.mark.parametrize(
    ("faces", "force_face", "expected"),
    [
        ((10, 10, 10), False, 0.7309),
        ((11, 12, 13), False, 0.7918),
        ((10, 10, 10), True, 0.5881),
        ((11, 12, 13), True, 0.7305),
    ],
)
def test_share_of_deals_that_can_make_24(
    faces: tuple[int, int, int], force_face: bool, expected: float
) -> None:
    variant = Variant("test", faces, False, "", force_face=force_face)
    assert _probability(variant) == pytest.approx(expected, abs=5e-5)


def test_share_of_accepted_deals_with_a_face_card() -> None:
    rng = random.Random(0)
    dealt = [deal(TRAINED, Split.ALL, rng) for _ in range(4000)]
    share = sum(any(rank in FACES for rank in each.ranks) for each in dealt) / len(dealt)
    assert share == pytest.approx(0.590, abs=4 * (0.59 * 0.41 / 4000) ** 0.5)


def test_ranks_are_uniform_with_replacement_and_one_face_is_forced_anywhere() -> None:
    rng = random.Random(1)
    free = Counter(rank for _ in range(6500) for rank in draw(TRAINED, rng).ranks)
    assert set(free) == set(RANKS)
    assert all(abs(count - 2000) < 250 for count in free.values())  # standard deviation 43
    forced = [draw(HELD_OUT, rng).ranks for _ in range(2000)]
    assert all(any(rank in FACES for rank in ranks) for ranks in forced)
    assert all(any(ranks[place] not in FACES for ranks in forced) for place in range(4))
    single = Counter(ranks.index(f) for ranks in forced for f in FACES if sum(r in FACES for r in ranks) == 1
                     and f in ranks)  # fmt: skip
    assert all(count > single.total() * 0.2 for count in single.values())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("split", [Split.TRAIN, Split.EVAL])
def test_deals_keep_to_their_split_and_are_solvable(name: str, split: Split) -> None:
    variant, rng = VARIANTS[name], random.Random(2)
    for _ in range(12):
        dealt = deal(variant, split, rng)
        rule = dealt.variant
        assert rule in variant.rules()
        assert variant.split_by_cards or split_of(dealt.instance) is split
        assert dealt.values == variant.values(dealt.ranks)
        assert len(dealt.ranks) == rule.cards
        assert rule.cards > 4 or solve(dealt.values, rule.target)


@pytest.mark.parametrize("name", ["faces_10", "faces_11_12_13", "faces_7"])
def test_problems_are_all_that_can_be_dealt(name: str) -> None:
    """Against every deal there is, dealt in order, and against what is drawn."""
    variant, rng = VARIANTS[name], random.Random(5)
    least = FACES if variant.force_face else RANKS
    hands = {
        tuple(sorted(variant.values((*rest, one)))) for rest in product(RANKS, repeat=3) for one in least
    }
    every = sorted(hands)
    witness = brute_force.solvable(every, 24)
    makeable = {instance_key(hand, 24) for hand, yes in zip(every, witness, strict=True) if yes}
    for split in (Split.TRAIN, Split.EVAL):
        assert problems(variant, split) == {key for key in makeable if split_of(key) is split}
        assert {deal(variant, split, rng).instance for _ in range(500)} <= problems(variant, split)
    assert problems(variant, Split.ALL) == makeable


def test_instance_key_ignores_the_order_and_names_the_target() -> None:
    assert instance_key((10, 3, 2, 10), 24) == instance_key((2, 10, 10, 3), 24) == "24:2-3-10-10"
    assert instance_key((2, 3, 10, 10), 36) == "36:2-3-10-10"


def test_split_is_stable_and_about_three_tenths_are_for_evaluation() -> None:
    keys = [instance_key(hand, 24) for hand in brute_force.hands(13)]
    share = sum(split_of(key) is Split.EVAL for key in keys) / len(keys)
    assert 0.27 < share < 0.33
    # Written down once: a changed split would turn deals that models trained on into evaluation deals.
    # By sha256sum in a shell: the first two bytes of the digest, below 0.3 * 65536 or not.
    evaluated = ["24:1-1-1-2", "24:1-1-1-3", "24:1-1-1-7", "24:1-1-1-8"]
    trained = ["24:1-1-1-1", "24:1-1-1-4", "24:1-1-1-5", "24:1-1-1-6", "24:2-3-10-10"]
    assert {split_of(key) for key in evaluated} == {Split.EVAL}
    assert {split_of(key) for key in trained} == {Split.TRAIN}


def test_train_and_eval_instances_are_disjoint() -> None:
    rng = random.Random(3)
    train = {deal(TRAINED, Split.TRAIN, rng).instance for _ in range(1500)}
    held_back = {deal(TRAINED, Split.EVAL, rng).instance for _ in range(800)}
    assert len(train) > 200
    assert len(held_back) > 80
    assert not train & held_back


def test_all_draws_from_both_splits() -> None:
    rng = random.Random(4)
    assert {split_of(deal(TRAINED, Split.ALL, rng).instance) for _ in range(50)} == {Split.TRAIN, Split.EVAL}


def test_equal_random_sources_deal_equally() -> None:
    first = [deal(HELD_OUT, Split.EVAL, random.Random(seed)) for seed in range(20)]
    again = [deal(HELD_OUT, Split.EVAL, random.Random(seed)) for seed in range(20)]
    assert first == again
    assert len({each.ranks for each in first}) > 15


def test_a_hopeless_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deck, "MAX_DEALS", 50)
    hopeless = Variant("hopeless", (1, 1, 1), False, "", target=10**6)
    with pytest.raises(DealError, match="'hopeless': none of 50 deals"):
        deal(hopeless, Split.ALL, random.Random(0))
