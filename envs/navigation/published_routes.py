"""Reads the published routes: route_infos.json and gps_pano_mapping.pkl of one folder. Street views are ignored."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpost.envs.navigation.city import Sighting
from rlpost.envs.navigation.data_files import DataError, clean, contents
from rlpost.envs.navigation.geometry import COMPASS, FULL_TURN, SIDES, Place, Position, flattened
from rlpost.envs.navigation.plain_pickle import PlainPickleError, read_mapping
from rlpost.envs.navigation.rail import RELOCATION
from rlpost.envs.navigation.sources import TripError
from rlpost.envs.navigation.trips import Leg, Trip, View
from rlpost.envs.navigation.variants import Variant, refuse_generated_only
from rlpost.envs.splits import Split, split_of

ROUTES = "route_infos.json"
PANORAMAS = "gps_pano_mapping.pkl"
_MOST_BYTES = 512 * 2**20
_ON_YOUR = " is on your "
_DESTINATION = "The destination "
_QUOTES = "\"'"
_NO_LANDMARK = "No landmark nearby"


@dataclass(frozen=True)
class Route:
    """One published route as read: the trip, and the positions of its places."""

    trip: Trip
    origin: Position


def _position(value: object) -> Position:
    """[lat, lon] in degrees. Raises ValueError for anything else."""
    if isinstance(value, list) and len(value) == 2:
        numbers = [each for each in value if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(numbers) == 2 and abs(numbers[0]) <= 90 and abs(numbers[1]) <= 180:
            return Position(float(numbers[0]), float(numbers[1]))
    raise ValueError(f"{str(value)[:60]!r} is not [latitude, longitude] in degrees")


def blocks(milestones: str) -> list[dict[str, str]]:
    """The pseudo-JSON blocks of `milestone_info`, with one `"key": "value",` per line.

    As in the published reader, lines without a colon and blocks without a line are ignored, and the last block may be
    unclosed.
    """
    found = (_fields(block.strip().lstrip("{")) for block in milestones.split("}"))
    return [fields for fields in found if fields]


def _fields(block: str) -> dict[str, str]:
    lines = (line.strip().rstrip(",").partition(":") for line in block.split("\n"))
    return {key.strip().strip(_QUOTES): value.strip().strip(_QUOTES) for key, colon, value in lines if colon}


def _field(block: dict[str, str], key: str) -> str:
    if key not in block:
        raise ValueError(f"a block of milestone_info has no {key!r}")
    return block[key]


def _heading(text: str) -> tuple[int, str]:
    """The degrees and the word of a text like `298 (northwest)`."""
    degrees, parenthesis, word = text.partition("(")
    word = word.strip().rstrip(")")
    if not parenthesis or not degrees.strip().isdecimal() or word not in COMPASS:
        raise ValueError(f"to_next_intersection_heading {text[:60]!r} is not like '298 (northwest)'")
    return int(degrees.strip()[:6]) % FULL_TURN, word


def _sighting(text: str) -> Sighting | None:
    told = clean(text)
    if not told or told.lower().startswith("no landmark"):
        return None
    name, found, where = told.removeprefix(_DESTINATION).rpartition(_ON_YOUR)
    return Sighting(name, where) if found and where in SIDES else Sighting(told, "")


def _leg(block: dict[str, str], end: Place, last: bool) -> Leg:
    heading, word = _heading(_field(block, "to_next_intersection_heading"))
    view = View(end, heading, _sighting(block.get("landmarks", _NO_LANDMARK)), not last)
    return Leg(heading, word, (), view)


def _nested(route: object, *keys: str) -> Any:
    for key in keys:
        if not isinstance(route, dict) or key not in route:
            raise ValueError(f"{'.'.join(keys)} is missing")
        route = route[key]
    return route


def _initial_heading(value: object) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return int(value) % FULL_TURN
    raise ValueError(f"init_heading {str(value)[:60]!r} is not a number")


def read_route(route: object) -> Route:
    """One object of route_infos.json, with init_heading 0 if missing, as published. ValueError says what is missing."""
    origin = _position(_nested(route, "start_place", "relocated_geocode"))
    geocodes, milestones = (
        _nested(route, "route_results", "geocode_list"),
        _nested(route, "milestone_info"),
    )
    if not isinstance(geocodes, list) or not isinstance(milestones, str):
        raise ValueError("geocode_list is not a list, or milestone_info not a text")
    places, parts = [_position(each) for each in geocodes], blocks(milestones)
    if len(places) != len(parts) or not places:
        raise ValueError(f"{len(parts)} blocks of milestone_info for {len(places)} places of geocode_list")
    ends = [flattened(place, origin) for place in places]
    legs = tuple(
        _leg(part, end, number == len(parts))
        for number, (part, end) in enumerate(zip(parts, ends, strict=True), 1)
    )
    assert isinstance(route, dict)  # it has a start_place
    facing = _initial_heading(route.get("init_heading", 0))
    digest = hashlib.sha256(repr((origin, places, milestones)).encode("utf-8", "surrogatepass")).hexdigest()
    start = View(Place(0.0, 0.0), facing, None, False)
    return Route(Trip(f"published:{digest[:16]}", start, legs), origin)


def read_routes(path: Path) -> list[Route]:
    """All routes of a route_infos.json. Raises DataError that names the file, the route and the problem."""
    try:
        data = json.loads(contents(path, _MOST_BYTES))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(path, "file", f"not JSON: {error}") from error
    if not isinstance(data, list) or len(data) != 2 or not isinstance(data[0], list) or not data[0]:
        raise DataError(path, "file", "must be [[route, ...], number] with at least one route")
    return list(_each_route(path, data[0]))


def _each_route(path: Path, routes: list[object]) -> Iterator[Route]:
    for number, route in enumerate(routes):
        try:
            yield read_route(route)
        except ValueError as error:
            raise DataError(path, f"route {number}", str(error)) from error


def read_panoramas(path: Path) -> tuple[Position, ...]:
    """The positions of the panoramas in a gps_pano_mapping.pkl."""
    try:
        mapping = read_mapping(contents(path, _MOST_BYTES))
        return tuple(_position(list(key)) for key in mapping)
    except DataError:
        raise
    except (PlainPickleError, ValueError) as error:
        raise DataError(path, "file", str(error)) from error


class PublishedRoutes:
    """A folder's routes, drawn uniformly. A hash of the route decides whether it is for training or evaluation."""

    def __init__(self, routes: list[Route], panoramas: tuple[Position, ...]) -> None:
        self._routes, self._panoramas = routes, panoramas
        names = (leg.end.sighting.landmark for r in routes for leg in r.trip.legs if leg.end.sighting)
        self.characters = frozenset("".join(names))

    @classmethod
    def load(cls, folder: Path) -> PublishedRoutes:
        return cls(read_routes(folder / ROUTES), read_panoramas(folder / PANORAMAS))

    def draw(self, variant: Variant, split: Split, max_legs: int, rng: random.Random) -> Trip:
        """Any route of the split; `max_legs` is for generated routes. Raises ValueError for generated-only variants."""
        refuse_generated_only(variant)
        fitting = [r for r in self._routes if split is Split.ALL or split_of(r.trip.instance) is split]
        if not fitting:
            raise TripError(f"none of the {len(self._routes)} routes is of split {split.value!r}; use 'all'")
        drawn = rng.choice(fitting)
        return replace(drawn.trip, panoramas=self._near(drawn))

    def _near(self, route: Route) -> tuple[Place, ...]:
        """The panoramas to which a place of the route, or one between two places, may be relocated."""
        places = [route.trip.start.place, *(leg.end.place for leg in route.trip.legs)]
        reach = 2 * RELOCATION  # from a node to its panorama, and from a place beside that one to its own
        low = Place(min(p.east for p in places) - reach, min(p.north for p in places) - reach)
        high = Place(max(p.east for p in places) + reach, max(p.north for p in places) + reach)
        flat = (flattened(position, route.origin) for position in self._panoramas)
        return tuple(
            p for p in flat if low.east <= p.east <= high.east and low.north <= p.north <= high.north
        )
