"""A trip: where one starts, the legs to walk and what is seen from them. Made from a city or from published routes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlpost.envs.navigation.city import City, Sighting
from rlpost.envs.navigation.geometry import Place


@dataclass(frozen=True)
class View:
    """What one sees, standing somewhere."""

    place: Place
    facing: int  # degrees
    sighting: Sighting | None
    intersection: bool


@dataclass(frozen=True)
class Leg:
    """Turn to `heading` and walk straight on, past the places of `passed`, to where the next turn or the end is."""

    heading: int  # degrees, where the leg begins
    compass: str  # its word, which imported routes bring along
    passed: tuple[View, ...]
    end: View
    street: str = ""  # empty where none is known


@dataclass(frozen=True)
class Trip:
    instance: str
    start: View
    legs: tuple[Leg, ...]  # at least one
    city: City | None = None  # none: only the trip itself is known
    nodes: tuple[int, ...] = ()  # of the city, from start to destination
    panoramas: tuple[Place, ...] | None = None  # where pictures were taken near the trip; None: everywhere

    @property
    def destination(self) -> Place:
        return self.legs[-1].end.place

    def facing(self, heading: int) -> Trip:
        """The same trip, begun with another heading."""
        sighting = self.start.sighting
        if self.city is not None:
            sighting = self.city.sighting(self.nodes[0], heading)
        return replace(self, start=replace(self.start, facing=heading, sighting=sighting))
