"""A trip: the start, the legs to walk and what is seen on them. It comes from a city or from published routes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlpost.envs.navigation.city import City, Sighting
from rlpost.envs.navigation.geometry import Place


@dataclass(frozen=True)
class View:
    """What someone sees who stands somewhere."""

    place: Place
    facing: int  # degrees
    sighting: Sighting | None
    intersection: bool


@dataclass(frozen=True)
class Leg:
    """Turn to `heading` and walk straight on, past the places of `passed`, to the next turn or the end."""

    heading: int  # degrees, at the start of the leg
    compass: str  # the compass word of the heading, given by imported routes
    passed: tuple[View, ...]
    end: View
    street: str = ""  # empty if unknown


@dataclass(frozen=True)
class Trip:
    instance: str
    start: View
    legs: tuple[Leg, ...]  # at least one
    city: City | None = None  # None: only the trip itself is known
    nodes: tuple[int, ...] = ()  # nodes of the city, from start to destination
    # Positions of the panoramas near the trip; None: everywhere.
    panoramas: tuple[Place, ...] | None = None

    @property
    def destination(self) -> Place:
        return self.legs[-1].end.place

    def facing(self, heading: int) -> Trip:
        """The same trip, started with another heading."""
        sighting = self.start.sighting
        if self.city is not None:
            sighting = self.city.sighting(self.nodes[0], heading)
        return replace(self, start=replace(self.start, facing=heading, sighting=sighting))
