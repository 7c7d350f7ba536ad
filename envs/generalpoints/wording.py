"""The rule in words: the fixed sentence of a prompt, or words that change from deal to deal.

A model trained on one fixed sentence need not read it. Training on many wordings of the same rule is the control of
arXiv 2510.00237. Evaluation keeps the fixed words, so that scores stay comparable, except on variants that test whether
other words are understood: `reworded` ones, in words that training has with `wording=varied` alone, and `paraphrased`
ones, in words that no training has.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum
from itertools import permutations

from rlpost.envs.generalpoints.variants import FACES


class Wording(StrEnum):
    FIXED = "fixed"
    VARIED = "varied"  # for training deals only


_OTHER_CLAUSES = ("{}: {}", "{} is {}", "{} counts as {}", "count {} as {}", "the value of {} is {}")
_CLAUSES = ("{}={}", *_OTHER_CLAUSES)
# Only for evaluation: no training text, the bundled model's corpus included, may state a rule in these words.
_HELD_OUT_CLAUSES = (
    "{} stands for {}",
    "take {} to be {}",
    "{} has {} points",
    "read {} as the number {}",
    "{} equals {}",
    "each {} scores {}",
)


def short_rule(faces: tuple[int, int, int]) -> str:
    """The rule as the short prompt states it."""
    return "J={}, Q={}, K={}".format(*faces)


def long_rule(faces: tuple[int, int, int]) -> str:
    """The rule as the published prompt states it, without the full stop."""
    if len(set(faces)) == 1:
        return f"'J', 'Q', and 'K' count as '{faces[0]}'"
    return "'J', 'Q', and 'K' count as '{}', '{}', and '{}'".format(*faces)


def varied_rule(faces: tuple[int, int, int], rng: random.Random) -> str:
    """The same three facts in one of six wordings, in any order. The fixed short wording is one of them."""
    return _stated(faces, rng.choice(_CLAUSES), rng)


def other_rule(faces: tuple[int, int, int], rng: random.Random) -> str:
    """Like `varied_rule`, but never in the fixed words of either prompt."""
    return _stated(faces, rng.choice(_OTHER_CLAUSES), rng)


def held_out_rule(faces: tuple[int, int, int], rng: random.Random) -> str:
    """The same three facts in one of six wordings that occur in no training, in any order."""
    return _stated(faces, rng.choice(_HELD_OUT_CLAUSES), rng)


def statements(faces: tuple[int, int, int]) -> Iterator[str]:
    """Every text in which any prompt may state the rule."""
    yield long_rule(faces)
    for clause in (*_CLAUSES, *_HELD_OUT_CLAUSES):
        facts = [clause.format(face, value) for face, value in zip(FACES, faces, strict=True)]
        yield from map(", ".join, permutations(facts))


def _stated(faces: tuple[int, int, int], clause: str, rng: random.Random) -> str:
    facts = [clause.format(face, value) for face, value in zip(FACES, faces, strict=True)]
    return ", ".join(rng.sample(facts, len(facts)))
