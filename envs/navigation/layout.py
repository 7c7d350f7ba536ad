"""A street plan under construction: nodes and named edges, without landmarks."""

from __future__ import annotations

import random

from rlpost.envs.navigation.city import Street
from rlpost.envs.navigation.geometry import Place, between, compass_word, distance, heading

_SHORTEST = 30.0  # m, of a street between two nodes


def _turn(a: Place, b: Place, c: Place) -> float:
    """Positive if c lies to the left of the way from a to b, negative if to the right."""
    return (b.east - a.east) * (c.north - a.north) - (b.north - a.north) * (c.east - a.east)


def _cross(a: Place, b: Place, c: Place, d: Place) -> bool:
    return _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0


class Plan:
    def __init__(self) -> None:
        self.nodes: list[Place] = []
        self._beside: list[dict[int, str]] = []  # by node: its neighbours, and the compass word towards each
        self._streets: dict[tuple[int, int], str] = {}

    def node(self, east: float, north: float) -> int:
        self.nodes.append(Place(round(east, 1), round(north, 1)))
        self._beside.append({})
        return len(self.nodes) - 1

    def connect(self, a: int, b: int, name: str) -> bool:
        """Lay a street, unless it is too short or leaves either end by the compass word of another street."""
        key = (min(a, b), max(a, b))
        if key in self._streets or distance(self.nodes[a], self.nodes[b]) < _SHORTEST:
            return False
        there, back = self._words(a, b)
        if there in self._beside[a].values() or back in self._beside[b].values():
            return False
        self._streets[key] = name
        self._beside[a][b], self._beside[b][a] = there, back
        return True

    def crosses(self, start: Place, end: Place) -> bool:
        """Whether a straight line would cross a street. A line that starts at the street's end does not cross it."""
        return any(_cross(start, end, self.nodes[a], self.nodes[b]) for a, b in self._streets)

    def cut(self, share: float, rng: random.Random) -> None:
        """Remove streets at random, but none whose loss would split the plan."""
        for key in [key for key in self._streets if rng.random() < share]:
            name = self._take(key)
            if key[1] not in self._reached(key[0]):
                self._lay(key, name)

    def curve(self, count: int, bulge: float, rng: random.Random) -> None:
        """Bend some streets: add a node beside their middle, at `bulge` of their length."""
        for a, b in rng.sample(sorted(self._streets), min(count, len(self._streets))):
            start, end = self.nodes[a], self.nodes[b]
            middle, aside = between(start, end, 0.5), bulge * rng.choice((-1, 1))
            east = middle.east + aside * (end.north - start.north)
            bend = self.node(east, middle.north - aside * (end.east - start.east))
            name = self._take((a, b))
            if self.connect(a, bend, name) and self.connect(bend, b, name):
                continue
            for other in list(self._beside[bend]):
                self._take((other, bend))
            self._lay((a, b), name)

    def largest_part(self) -> tuple[tuple[Place, ...], tuple[Street, ...]]:
        """The largest connected part, by nodes: its nodes and streets, renumbered."""
        parts: list[set[int]] = []
        seen: set[int] = set()
        for node in range(len(self.nodes)):
            if node not in seen:
                parts.append(self._reached(node))
                seen |= parts[-1]
        largest = max(parts, key=len)
        kept = sorted(largest)
        number = {node: new for new, node in enumerate(kept)}
        streets = (
            Street(number[a], number[b], name)
            for (a, b), name in sorted(self._streets.items())
            if a in number
        )
        return tuple(self.nodes[node] for node in kept), tuple(streets)

    def _lay(self, key: tuple[int, int], name: str) -> None:
        a, b = key
        self._streets[key] = name
        self._beside[a][b], self._beside[b][a] = self._words(a, b)

    def _take(self, key: tuple[int, int]) -> str:
        del self._beside[key[0]][key[1]], self._beside[key[1]][key[0]]
        return self._streets.pop(key)

    def _words(self, a: int, b: int) -> tuple[str, str]:
        """The compass words from a to b and back."""
        there, back = heading(self.nodes[a], self.nodes[b]), heading(self.nodes[b], self.nodes[a])
        return compass_word(there), compass_word(back)

    def _reached(self, start: int) -> set[int]:
        reached, waiting = {start}, [start]
        while waiting:
            found = self._beside[waiting.pop()].keys() - reached
            reached |= found
            waiting.extend(found)
        return reached
