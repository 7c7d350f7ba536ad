"""The rule variants of GeneralPoints: values of the face cards, target, number of cards, held out or not.

`faces_10_mixed` is for training on more deals: the trained card values with other targets and numbers of cards. It has
neither the target of `target_36` nor the count of `five_cards`, so that these stay held out from it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FACES = ("J", "Q", "K")
MIXED_TARGETS = (12, 18, 20, 24, 28, 30, 32)
MIXED_COUNTS = (3, 4)


class RuleWords(StrEnum):
    """The words in which a variant states its rule in evaluation."""

    FIXED = "fixed"  # those of the prompt
    REWORDED = "reworded"  # other words, which occur in training only with env_args.wording=varied
    PARAPHRASED = "paraphrased"  # words that occur in no training, whatever its settings


@dataclass(frozen=True)
class Variant:
    """One rule. `held_out` variants are for evaluation only; a run that would train on one is refused."""

    name: str
    faces: tuple[int, int, int]  # values of J, Q, K
    held_out: bool
    summary: str
    target: int = 24
    cards: int = 4
    force_face: bool = False  # deal at least one J, Q or K, as the published held-out deals do
    words: RuleWords = RuleWords.FIXED
    same_rule: bool = False  # held out, but not because of its rule
    targets: tuple[int, ...] = ()  # each deal draws one of them; empty: always `target`
    counts: tuple[int, ...] = ()  # each deal draws one of them as its number of cards; empty: always `cards`
    split_by_cards: bool = False  # the target does not matter to the split, see deck.in_split
    # Values of J, Q, K that the prompt states although `faces` score (a fake rule); None: those that score.
    stated: tuple[int, int, int] | None = None

    @property
    def stated_faces(self) -> tuple[int, int, int]:
        """The values of J, Q, K as the prompt states them."""
        return self.faces if self.stated is None else self.stated

    @property
    def fake_rule(self) -> bool:
        """Whether the prompt states another rule than the one that scores."""
        return self.stated is not None

    @property
    def mixed(self) -> bool:
        """Whether deals differ in target or number of cards."""
        return bool(self.targets or self.counts)

    def rules(self) -> tuple[Variant, ...]:
        """The rules with one target and one number of cards each, of which every deal draws one."""
        if not self.mixed:
            return (self,)
        return tuple(
            replace(self, target=target, cards=count, targets=(), counts=())
            for target in self.targets or (self.target,)
            for count in self.counts or (self.cards,)
        )

    def value(self, rank: str) -> int:
        """The value of a card under this rule. Every rank of RANKS has one, so no KeyError is possible."""
        if rank in FACES:
            return self.faces[FACES.index(rank)]
        return RANKS.index(rank) + 1

    def values(self, ranks: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.value(rank) for rank in ranks)


_RULES = (
    Variant("faces_10", (10, 10, 10), False, "J, Q and K count as 10: the published training rule"),
    Variant(
        "faces_10_mixed",
        (10, 10, 10),
        False,
        "J, Q and K count as 10; three or four cards make 12, 18, 20, 24, 28, 30 or 32",
        targets=MIXED_TARGETS,
        counts=MIXED_COUNTS,
        split_by_cards=True,
    ),
    Variant(
        "faces_11_12_13",
        (11, 12, 13),
        True,
        "J, Q, K count as 11, 12, 13, at least one of them dealt: the published held-out rule",
        force_face=True,
    ),
    Variant("faces_12", (12, 12, 12), True, "J, Q and K count as 12 (arXiv 2510.00237)", force_face=True),
    Variant("faces_7", (7, 7, 7), True, "J, Q and K count as 7 (arXiv 2510.00237)", force_face=True),
    Variant("faces_5", (5, 5, 5), True, "J, Q and K count as 5 (arXiv 2510.00237)", force_face=True),
    Variant(
        "faces_10_reworded",
        (10, 10, 10),
        True,
        "the trained rule, in other words",
        words=RuleWords.REWORDED,
        same_rule=True,
    ),
    Variant(
        "faces_11_12_13_reworded",
        (11, 12, 13),
        True,
        "J, Q, K count as 11, 12, 13, in other words",
        force_face=True,
        words=RuleWords.REWORDED,
    ),
    Variant(
        "faces_10_paraphrased",
        (10, 10, 10),
        True,
        "the trained rule, in words that no training has",
        words=RuleWords.PARAPHRASED,
        same_rule=True,
    ),
    Variant(
        "faces_11_12_13_paraphrased",
        (11, 12, 13),
        True,
        "J, Q, K count as 11, 12, 13, in words that no training has",
        force_face=True,
        words=RuleWords.PARAPHRASED,
    ),
    Variant("target_36", (10, 10, 10), True, "the trained card values, but the target is 36", target=36),
    Variant("five_cards", (10, 10, 10), True, "the trained card values and target, but five cards", cards=5),
)
TRAINED = _RULES[0]  # the published training rule


def _fake() -> Iterator[Variant]:
    """Each other rule of the faces as a fake one: stated in the prompt, while the trained rule scores.

    A face is always dealt, so an answer by the stated rule is never right. The trained rule's splits hold the
    instances out.
    """
    for rule in _RULES:
        if rule.faces != TRAINED.faces and rule.words is RuleWords.FIXED:
            faces = ", ".join(map(str, rule.faces))
            yield replace(
                TRAINED,
                name=f"fake_{rule.name}",
                held_out=True,
                summary=f"J, Q, K are said to count as {faces}, but the trained rule scores: whoever reads it fails",
                force_face=True,
                same_rule=True,
                stated=rule.faces,
            )


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (*_RULES, *_fake())}
