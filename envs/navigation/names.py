"""Names of streets and landmarks. The held-out family shares no word for a landmark with the trained family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_LANDMARKS = 80


@dataclass(frozen=True)
class Vocabulary:
    first: tuple[str, ...]
    kinds: tuple[str, ...]
    streets: tuple[str, ...]
    street_kinds: tuple[str, ...]

    def landmarks(self, rng: random.Random) -> Iterator[str]:
        """Distinct names of two words in random order; more than the largest city has nodes."""
        names = [(first, kind) for first in self.first for kind in self.kinds]
        return (f"{first} {kind}" for first, kind in rng.sample(names, _MOST_LANDMARKS))

    def street_names(self, rng: random.Random) -> Iterator[str]:
        """Distinct names in random order."""
        names = [(name, kind) for name in self.streets for kind in self.street_kinds]
        rng.shuffle(names)
        return (f"{name} {kind}" for name, kind in names)


def _words(words: str) -> tuple[str, ...]:
    return tuple(words.split())


MODERN = Vocabulary(
    _words("Red Blue Green Old New Sun Moon Star Lake Hill Rose Lion Apple City Gold King"),
    _words(
        "Cafe Bank Hotel Museum School Park Shop Inn Mill Market Cinema Library Bakery Church Station Pharmacy"
    ),
    _words("Oak Pine Main River Church Mill High Station Park Bridge Queen Maple"),
    _words("Street Avenue Road"),
)

OLD_TOWN = Vocabulary(
    _words(
        "Bronze Marble Silver Saint Royal Ivory White Black Stone Eagle Falcon Olive Laurel Crown Pilgrim Amber"
    ),
    _words(
        "Fountain Chapel Gate Tower Cloister Well Arch Statue Obelisk Temple Palace Abbey Bath Column Bastion Shrine"
    ),
    _words("Tanner Cooper Weaver Bishop Friar Potter Cutler Fletcher Dyer Glover Mason"),
    _words("Lane Row Steps"),
)
