"""Routes through a city, drawn at random and then walked. A route that cannot be walked as told is drawn again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from rlpost.envs.navigation.city import City, Way
from rlpost.envs.navigation.geometry import HALF, compass_word, eighths
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.trips import Leg, Trip, View
from rlpost.envs.navigation.walking import Pose, ahead, forward, turn

MAX_ROUTES = 60  # drawn in one city before another city is tried
_MAX_BLOCKS = 2  # streets between turns: more would make episodes longer, but not harder
_MAX_HEADINGS = 40  # tried before a route is abandoned


class Stop(NamedTuple):
    """The start of a leg, or the end of the last one, with the street turned to."""

    node: int
    heading: int
    street: str


def _clear_turn(city: City, pose: Pose, towards: int) -> bool:
    """Whether both rules' words for the turn lead there, and the compass words tell the two headings apart."""
    if eighths(pose.heading, towards) in (0, HALF):
        return False
    found = Pose(pose.node, towards)
    return all(turn(city, pose, rule.word(pose.heading, towards), rule) == found for rule in Rule)


def _walk_leg(city: City, pose: Pose, seen: set[int], rng: random.Random) -> Pose | None:
    """Walk along the street for some blocks, or to its end; None if that returns to a place already visited."""
    for _ in range(rng.randint(1, _MAX_BLOCKS)):
        onward = forward(city, pose)
        if onward is None:
            break
        if onward.node in seen:
            return None
        seen.add(onward.node)
        pose = onward
    return pose


def _turns(city: City, pose: Pose, seen: set[int]) -> list[Way]:
    """The streets to which the walker may turn here."""
    straight = ahead(city, pose)
    return [
        way
        for way in city.ways[pose.node]
        if way != straight and way.to not in seen and _clear_turn(city, pose, way.heading)
    ]


def _draw(city: City, legs: int, rng: random.Random) -> list[Stop] | None:
    """The start, every turn and the destination of a random walk; None if it got stuck."""
    start = rng.randrange(len(city.nodes))
    first = rng.choice(city.ways[start])
    pose, seen = Pose(start, first.heading), {start}
    stops = [Stop(start, first.heading, first.street)]
    for leg in range(legs):
        end = _walk_leg(city, pose, seen, rng)
        if end is None:
            return None
        pose = end
        choices = _turns(city, pose, seen) if leg < legs - 1 else []
        if choices:
            chosen = rng.choice(choices)
            pose = Pose(pose.node, chosen.heading)
            stops.append(Stop(pose.node, chosen.heading, chosen.street))
    stops.append(Stop(pose.node, pose.heading, ""))
    return stops if len(stops) == legs + 1 else None


def view(city: City, pose: Pose) -> View:
    sighting = city.sighting(pose.node, pose.heading)
    return View(city.nodes[pose.node], pose.heading, sighting, city.is_intersection(pose.node))


def _follow(city: City, pose: Pose, end: int) -> Iterator[Pose]:
    """Every pose of a leg after its first, up to and including the end."""
    while pose.node != end:
        onward = forward(city, pose)
        assert onward is not None  # it was walked when it was drawn
        yield onward
        pose = onward


def _is_told(leg: Leg) -> bool:
    """Whether the walker can recognise the leg's end: by its landmark, or because it is the first intersection."""
    first = leg.end.intersection and not any(view.intersection for view in leg.passed)
    return leg.end.sighting is not None or first


def trip(city: City, stops: list[Stop]) -> Trip | None:
    """The trip along the drawn stops; None if its instructions would not say where to stop."""
    nodes, legs = [stops[0].node], []
    for stop, after in pairwise(stops):
        poses = list(_follow(city, Pose(stop.node, stop.heading), after.node))
        *passed, end = (view(city, pose) for pose in poses)
        nodes += [pose.node for pose in poses]
        legs.append(Leg(stop.heading, compass_word(stop.heading), tuple(passed), end, stop.street))
    if legs[-1].end.sighting is None or not all(map(_is_told, legs)):
        return None
    instance = f"{city.style}:{city.digest}:" + "-".join(map(str, nodes))
    return Trip(instance, view(city, Pose(nodes[0], 0)), tuple(legs), city, tuple(nodes))


def starting_heading(trip: Trip, rng: random.Random) -> int | None:
    """A random heading from which both rules have a clear word for the first turn; None if there is none."""
    first = trip.legs[0].heading
    for _ in range(_MAX_HEADINGS):
        heading = rng.randrange(360)
        if eighths(heading, first) in (0, HALF):
            continue
        if trip.city is None:
            return heading
        if _clear_turn(trip.city, Pose(trip.nodes[0], heading), first):
            return heading
    return None


def draw_trip(city: City, legs: int, rng: random.Random) -> Trip | None:
    """A trip of `legs` legs, with its first heading not yet set; None if MAX_ROUTES draws gave none."""
    for _ in range(MAX_ROUTES):
        stops = _draw(city, legs, rng)
        found = None if stops is None else trip(city, stops)
        if found is not None:
            return found
    return None
