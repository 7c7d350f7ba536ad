"""The rule variants of GeneralPoints: values of the face cards, target, number of cards, held out or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FACES = ("J", "Q", "K")


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
    # The rule is stated in words that never occur in training, unless env_args.wording=varied.
    reworded: bool = False
    same_rule: bool = False  # held out, but not because of its rule
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
        reworded=True,
        same_rule=True,
    ),
    Variant(
        "faces_11_12_13_reworded",
        (11, 12, 13),
        True,
        "J, Q, K count as 11, 12, 13, in other words than those of training",
        force_face=True,
        reworded=True,
    ),
    Variant("target_36", (10, 10, 10), True, "the trained card values, but the target is 36", target=36),
    Variant("five_cards", (10, 10, 10), True, "the trained card values and target, but five cards", cards=5),
)


def _fake() -> Iterator[Variant]:
    """Each other rule of the faces as a fake one: stated in the prompt, while the trained rule scores.

    A face is always dealt, so an answer by the stated rule is never right. The trained rule's splits hold the
    instances out.
    """
    trained = _RULES[0]
    for rule in _RULES:
        if rule.faces != trained.faces and not rule.reworded:
            faces = ", ".join(map(str, rule.faces))
            yield replace(
                trained,
                name=f"fake_{rule.name}",
                held_out=True,
                summary=f"J, Q, K are said to count as {faces}, but the trained rule scores: whoever reads it fails",
                force_face=True,
                same_rule=True,
                stated=rule.faces,
            )


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (*_RULES, *_fake())}
