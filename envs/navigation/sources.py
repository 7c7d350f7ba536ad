"""Sources of trips: generated cities, and the protocol that the importers implement too."""

from __future__ import annotations

import random
from typing import Protocol

from rlpost.envs.navigation.generator import generate
from rlpost.envs.navigation.routes import draw_trip
from rlpost.envs.navigation.trips import Trip
from rlpost.envs.navigation.variants import Variant
from rlpost.envs.splits import Split, split_of

MAX_CITIES = 1000  # cities tried before a draw is abandoned
_CITY_SEEDS = 2**48


class TripError(RuntimeError):
    """No acceptable trip was found: the variant, the split or the data allow none, or almost none."""


class Source(Protocol):
    @property
    def characters(self) -> frozenset[str]:
        """The characters of its names, besides ASCII."""

    def draw(self, variant: Variant, split: Split, max_legs: int, rng: random.Random) -> Trip:
        """A trip of the split, with its first heading not yet set. Raises TripError if there is none, ValueError if
        this source does not support the variant."""


class Generated:
    """Any number of cities. A hash of the city decides whether all its routes are for training or evaluation."""

    characters: frozenset[str] = frozenset()

    def draw(self, variant: Variant, split: Split, max_legs: int, rng: random.Random) -> Trip:
        legs = rng.randint(*variant.legs(max_legs))
        for _ in range(MAX_CITIES):
            city = generate(variant.style, rng.randrange(_CITY_SEEDS))
            if split is not Split.ALL and split_of(f"{city.style}:{city.digest}") is not split:
                continue
            trip = draw_trip(city, legs, rng)
            if trip is not None:
                return trip
        raise TripError(
            f"variant {variant.name!r}: no route of {legs} legs was found in {MAX_CITIES} cities;"
            " choose a smaller max_legs"
        )
