"""Reads an OpenStreetMap extract (XML) as a city: streets between crossings, points of interest as landmarks.

Streets are straight from crossing to crossing. If two leave a crossing by the same compass word, only the first is
kept, so that words tell all turns apart. The city is the largest part that is then still connected.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from xml.parsers import expat

from rlpost.envs.navigation.city import City, Landmark
from rlpost.envs.navigation.data_files import DataError, clean, contents
from rlpost.envs.navigation.geometry import Place, Position, distance, flattened
from rlpost.envs.navigation.layout import Plan
from rlpost.envs.navigation.routes import draw_trip
from rlpost.envs.navigation.sources import TripError
from rlpost.envs.navigation.trips import Trip
from rlpost.envs.navigation.variants import Variant, refuse_generated_only
from rlpost.envs.splits import Split, split_of

_MOST_BYTES = 256 * 2**20
_WALKED = frozenset(
    [
        "residential",
        "living_street",
        "primary",
        "secondary",
        "tertiary",
        "trunk",
        "unclassified",
        "pedestrian",
        "road",
    ]
)
_INTERESTING = frozenset(["amenity", "shop", "tourism", "leisure", "historic", "office", "craft", "railway"])
_MOST_DRAWS = 50
_REACH = 40.0  # m from a crossing to the landmarks seen there


class _Reader:
    """Collects positions, streets and named points from a stream, so the file's tree is never built."""

    def __init__(self) -> None:
        self.positions: dict[str, Position] = {}
        self.streets: list[tuple[str, list[str]]] = []  # name, node ids
        self.points: list[tuple[str, Position]] = []
        self._tags: dict[str, str] = {}
        self._refs: list[str] = []
        self._id = ""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in ("node", "way"):
            self._tags, self._refs, self._id = {}, [], attributes["id"]
            if tag == "node":
                self.positions[self._id] = _read_position(attributes)
        elif tag == "tag":
            self._tags[attributes["k"]] = attributes["v"]
        elif tag == "nd":
            self._refs.append(attributes["ref"])

    def end(self, tag: str) -> None:
        name = clean(self._tags["name"]) if "name" in self._tags else ""
        if tag == "way" and "highway" in self._tags and self._tags["highway"] in _WALKED:
            self.streets.append((name, self._refs))
        elif tag == "node" and name and not _INTERESTING.isdisjoint(self._tags):
            self.points.append((name, self.positions[self._id]))


def _read_position(attributes: dict[str, str]) -> Position:
    position = Position(float(attributes["lat"]), float(attributes["lon"]))
    if not (abs(position.latitude) <= 90 and abs(position.longitude) <= 180):
        raise ValueError(f"a node lies at {position.latitude}, {position.longitude}")
    return position


def _refuse_declarations(*_: Any) -> None:
    raise ValueError("it declares a document type or entities, which no extract does")


def _read(path: Path) -> _Reader:
    """Read the file. Raises DataError if it is not OpenStreetMap XML; document types, and so entities, are refused."""
    reader, parser = _Reader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.StartDoctypeDeclHandler = _refuse_declarations
    data = contents(path, _MOST_BYTES)
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DataError(path, "file", f"not XML: {error}") from error
    except KeyError as error:
        line = parser.CurrentLineNumber
        raise DataError(path, f"line {line}", f"an element lacks the attribute {error}") from error
    except ValueError as error:
        raise DataError(path, f"line {parser.CurrentLineNumber}", str(error)) from error
    return reader


def _pieces(reader: _Reader) -> Iterator[tuple[str, str, str]]:
    """(node, node, street) from crossing to crossing. A way's references outside the extract are left out."""
    ways = [(name, [ref for ref in refs if ref in reader.positions]) for name, refs in sorted(reader.streets)]
    uses = Counter(ref for _, refs in ways for ref in refs)
    for name, refs in ways:
        ends = [place for place in range(len(refs)) if place in (0, len(refs) - 1) or uses[refs[place]] > 1]
        for first, last in pairwise(ends):
            if refs[first] != refs[last]:
                yield refs[first], refs[last], name


def _landmarks(nodes: tuple[Place, ...], points: list[tuple[str, Place]]) -> tuple[Landmark, ...]:
    """Each name once, in the order of names, at the nearest node within reach that has no landmark yet."""
    cells = _by_cell(nodes)
    taken: dict[int, Landmark] = {}
    named: set[str] = set()
    for name, place in sorted(points):
        if name in named:
            continue
        near = [
            (away, node)
            for node in _around(place, cells)
            if node not in taken and (away := distance(nodes[node], place)) <= _REACH
        ]
        if near:
            _, node = min(near)
            taken[node] = Landmark(name, node, place)
            named.add(name)
    return tuple(taken[node] for node in sorted(taken))


def _by_cell(nodes: tuple[Place, ...]) -> dict[tuple[int, int], list[int]]:
    """Nodes by squares of side _REACH: all nodes within reach of a place are in its square or a neighbouring one."""
    cells: dict[tuple[int, int], list[int]] = {}
    for node, place in enumerate(nodes):
        cells.setdefault(_cell(place), []).append(node)
    return cells


def _cell(place: Place) -> tuple[int, int]:
    return math.floor(place.east / _REACH), math.floor(place.north / _REACH)


def _around(place: Place, cells: dict[tuple[int, int], list[int]]) -> Iterator[int]:
    east, north = _cell(place)
    for cell in product((east - 1, east, east + 1), (north - 1, north, north + 1)):
        yield from cells.get(cell, ())


def read_city(path: Path) -> City:
    """The city of an extract. Raises DataError if the file is damaged or no streets meet in it."""
    reader = _read(path)
    pieces = list(_pieces(reader))
    if not pieces:
        raise DataError(path, "file", "it has no streets (ways with a highway tag that one walks)")
    origin = reader.positions[pieces[0][0]]
    plan, numbers = Plan(), {}
    for ref in dict.fromkeys(ref for a, b, _ in pieces for ref in (a, b)):
        numbers[ref] = plan.node(*flattened(reader.positions[ref], origin))
    for a, b, name in pieces:
        plan.connect(numbers[a], numbers[b], name)
    nodes, streets = plan.largest_part()
    points = [(name, flattened(position, origin)) for name, position in reader.points]
    return City("osm", nodes, streets, _landmarks(nodes, points))


class OpenStreetMap:
    """Routes through one real city. A hash of the route decides whether it is for training or evaluation."""

    def __init__(self, city: City) -> None:
        self.city = city
        names = [street.name for street in city.streets] + [each.name for each in city.landmarks]
        self.characters = frozenset("".join(names))

    @classmethod
    def load(cls, path: Path) -> OpenStreetMap:
        return cls(read_city(path))

    def draw(self, variant: Variant, split: Split, max_legs: int, rng: random.Random) -> Trip:
        """A trip. Raises ValueError for a variant of generated cities, TripError if the city has no such route."""
        refuse_generated_only(variant)
        legs = rng.randint(*variant.legs(max_legs))
        for _ in range(_MOST_DRAWS):
            trip = draw_trip(self.city, legs, rng)
            if trip is not None and (split is Split.ALL or split_of(trip.instance) is split):
                return trip
        raise TripError(
            f"variant {variant.name!r}: no route of {legs} legs was found in the extract; choose a smaller max_legs,"
            " another split or a larger extract"
        )
