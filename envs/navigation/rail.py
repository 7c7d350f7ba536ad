"""The rail: the places at which the walker must act, each with its right action. Mended, and as published."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlpost.envs.navigation.actions import FORWARD, STOP, Action, turned
from rlpost.envs.navigation.geometry import Place, between, distance
from rlpost.envs.navigation.rules import Rule, Words
from rlpost.envs.navigation.trips import Leg, Trip, View

DROP_RATE = 0.5  # share of the places between two nodes that are dropped
CANDIDATES = 5  # published: places evenly spaced, the last at the node
MIN_LEG = 5.0  # m, published: shorter legs have no places between
MIN_GAP = 8.0  # m, published: from a place between two nodes to either node
RELOCATION = 20.0  # m, published: from a place to the panorama that replaces it
_ROOM = 30.0  # m, mended: a longer stretch of street may have a place between


@dataclass(frozen=True)
class Entry:
    """A place on the route, the right action there, and the number of the instruction that the action follows."""

    view: View
    action: Action
    instruction: int  # from 1; turns are odd, walks even
    landmarks: str  # the published observation of landmarks here


def _landmarks(view: View) -> str:
    return "No landmark nearby" if view.sighting is None else view.sighting.sentence


def _entry(view: View, action: Action, instruction: int) -> Entry:
    return Entry(view, action, instruction, _landmarks(view))


def _with_place_between(place: Place, leg: Leg, rng: random.Random) -> list[View]:
    """The leg's views up to its end. A long first stretch may be divided by a place where nothing is seen."""
    views = [*leg.passed, leg.end]
    if distance(place, views[0].place) > _ROOM and rng.random() >= DROP_RATE:
        views.insert(0, View(between(place, views[0].place, 0.5), leg.heading, None, False))
    return views


def mended_rail(trip: Trip, rule: Words, rng: random.Random) -> list[Entry]:
    """Every node on the route, and at most one place between nodes per leg. Observations are true; turns wrap."""
    here, entries = trip.start, []
    for number, leg in enumerate(trip.legs):
        entries.append(_entry(here, turned(rule.word(here.facing, leg.heading)), 2 * number + 1))
        *passed, here = _with_place_between(here.place, leg, rng)
        entries += [_entry(view, FORWARD, 2 * number + 2) for view in passed]
    return [*entries, _entry(here, STOP, 2 * len(trip.legs))]


def relocated(place: Place, panoramas: tuple[Place, ...] | None) -> Place | None:
    """The nearest panorama closer than RELOCATION, or None; the place itself if panoramas are everywhere."""
    if panoramas is None:
        return place
    nearest = min(panoramas, key=lambda each: distance(each, place), default=None)
    return nearest if nearest is not None and distance(nearest, place) < RELOCATION else None


def _standing(place: Place, panoramas: tuple[Place, ...] | None) -> Place:
    """The place of a node on the published rail: its panorama, or the node if none is near (published: asks online)."""
    found = relocated(place, panoramas)
    return place if found is None else found


def _published_between(start: Place, node: Place, trip: Trip, rng: random.Random) -> Iterator[Place]:
    """The places from the start to a node. The leg's length is measured to the node, its end is the node's panorama."""
    if distance(start, node) <= MIN_LEG:
        return
    end = _standing(node, trip.panoramas)
    for step in range(1, CANDIDATES + 1):
        if rng.random() < DROP_RATE:
            continue
        place = relocated(between(start, end, step / CANDIDATES), trip.panoramas)
        if place is not None and min(distance(place, start), distance(place, end)) > MIN_GAP:
            yield place


def published_rail(trip: Trip, rule: Rule, rng: random.Random) -> list[Entry]:
    """The published rail: only turns and the destination are nodes; all nodes except the last are intersections."""
    start = _standing(trip.start.place, trip.panoramas)
    here = replace(trip.start, place=start, sighting=None, intersection=False)
    before, landmarks, entries = trip.start.facing, "No landmarks nearby", []
    for number, leg in enumerate(trip.legs):
        turn = turned(rule.published_word(before, leg.heading))
        entries.append(Entry(here, turn, 2 * number + 1, landmarks))
        for place in _published_between(here.place, leg.end.place, trip, rng):
            view = View(place, leg.heading, None, False)
            entries.append(Entry(view, FORWARD, 2 * number + 2, "No landmarks nearby"))
        last = number == len(trip.legs) - 1
        end = _standing(leg.end.place, trip.panoramas)
        here = replace(leg.end, place=end, facing=leg.heading, intersection=not last)
        before, landmarks = leg.heading, _landmarks(here)
    told = landmarks if here.sighting is None else f"The destination {landmarks}"
    return [*entries, Entry(here, STOP, 2 * len(trip.legs), told)]
