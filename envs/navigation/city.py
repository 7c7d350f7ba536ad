"""A city: crossings and bends joined by named streets, with landmarks at some of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rlpost.envs.navigation.geometry import Place, distance, heading, side


class Street(NamedTuple):
    """A straight piece of street between two nodes, walked either way."""

    a: int
    b: int
    name: str


class Landmark(NamedTuple):
    name: str
    node: int  # the node from which it is seen
    place: Place


class Way(NamedTuple):
    """A street as seen from one of its ends."""

    to: int
    heading: int  # degrees
    street: str


class Sighting(NamedTuple):
    landmark: str
    side: str  # one of geometry.SIDES; empty if the words of an imported route are the landmark

    @property
    def sentence(self) -> str:
        return f"{self.landmark} is on your {self.side}" if self.side else self.landmark


@dataclass(frozen=True, eq=False)  # compared by digest, because comparing all fields would be slow
class City:
    style: str
    nodes: tuple[Place, ...]
    streets: tuple[Street, ...]
    landmarks: tuple[Landmark, ...]  # at most one per node

    @cached_property
    def digest(self) -> str:
        """The identity of a city, whatever made it: a hash of every node, street and landmark."""
        whole = json.dumps([self.style, self.nodes, self.streets, self.landmarks])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @cached_property
    def ways(self) -> tuple[tuple[Way, ...], ...]:
        """The streets that leave each node, in the order of their headings, by node."""
        ways: list[list[Way]] = [[] for _ in self.nodes]
        for a, b, name in self.streets:
            ways[a].append(Way(b, heading(self.nodes[a], self.nodes[b]), name))
            ways[b].append(Way(a, heading(self.nodes[b], self.nodes[a]), name))
        return tuple(tuple(sorted(leaving, key=lambda way: way.heading)) for leaving in ways)

    @cached_property
    def _landmark_at(self) -> dict[int, Landmark]:
        return {landmark.node: landmark for landmark in self.landmarks}

    def is_intersection(self, node: int) -> bool:
        return len(self.ways[node]) > 2

    def landmark(self, node: int) -> Landmark | None:
        return self._landmark_at.get(node)

    def sighting(self, node: int, facing: int) -> Sighting | None:
        """The landmark at a node, as seen by someone who stands there and looks in the direction `facing`."""
        landmark = self.landmark(node)
        if landmark is None:
            return None
        return Sighting(landmark.name, side(facing, heading(self.nodes[node], landmark.place)))

    def distance(self, a: int, b: int) -> float:
        """The distance in a straight line, in metres."""
        return distance(self.nodes[a], self.nodes[b])
