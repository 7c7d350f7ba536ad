"""The rail against a small simulator written afresh from the published description, in complex numbers."""

from __future__ import annotations

import cmath
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from rlpost.envs.navigation import routes
from rlpost.envs.navigation.generator import generate
from rlpost.envs.navigation.geometry import COMPASS, Place
from rlpost.envs.navigation.rail import Entry, mended_rail, published_rail, relocated
from rlpost.envs.navigation.routes import Stop, draw_trip, starting_heading
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.trips import Trip


class Script(random.Random):
    """Random numbers that are written down beforehand."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def trips(count: int) -> list[Trip]:
    found, rng = [], random.Random(7)
    for seed in range(10 * count):
        trip = draw_trip(generate(("grid", "rings")[seed % 2], seed), 1 + seed % 3, rng)
        heading = None if trip is None else starting_heading(trip, rng)
        if trip is not None and heading is not None:
            found.append(trip.facing(heading))
        if len(found) == count:
            return found
    raise AssertionError("too few trips")


def _simulated(
    trip: Trip, numbers: list[float], relative: bool, spots: list[complex] | None
) -> list[tuple[complex, str]]:
    """(place, right action) of every rail entry, as the specification words it."""
    numbers = list(numbers)

    def standing(spot: complex) -> complex:
        """A node is at its panorama; where it lies if none is near."""
        nearest = min(spots or [], key=lambda each: abs(each - spot), default=spot)
        return nearest if abs(nearest - spot) < 20 else spot

    at, facing, rail = standing(complex(*trip.start.place)), trip.start.facing, []
    for leg in trip.legs:
        turn = leg.heading - facing
        label = (
            "left"
            if turn < -45
            else "right"
            if turn > 45
            else "slightly left"
            if turn <= 0
            else "slightly right"
        )
        rail.append((at, f"turn_direction({label if relative else leg.compass})"))
        node = complex(*leg.end.place)
        end = standing(node)
        if abs(node - at) > 5:
            for fifth in (1, 2, 3, 4, 5):
                if numbers.pop(0) < 0.5:
                    continue
                spot = at + (end - at) * fifth / 5
                if spots is not None:
                    spot = min(spots, key=lambda each: abs(each - spot), default=complex("inf"))
                    if abs(spot - (at + (end - at) * fifth / 5)) >= 20:
                        continue
                if abs(spot - at) > 8 and abs(spot - end) > 8:
                    rail.append((spot, "forward()"))
        at, facing = end, leg.heading
    return [*rail, (at, "stop()")]


def _as_simulated(entries: list[Entry]) -> list[tuple[complex, str]]:
    return [(complex(*entry.view.place), str(entry.action)) for entry in entries]


def _same(one: list[tuple[complex, str]], other: list[tuple[complex, str]]) -> bool:
    return [action for _, action in one] == [action for _, action in other] and all(
        cmath.isclose(a, b, abs_tol=1e-6) for (a, _), (b, _) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("rule", list(Rule))
def test_the_published_rail_is_the_simulated_one(rule: Rule) -> None:
    dice = random.Random(3)
    for trip in trips(40):
        for spread in (None, 12.0, 60.0):
            numbers = [dice.random() for _ in range(5 * len(trip.legs))]
            spots = None if spread is None else [
                complex(dice.uniform(-spread, spread), dice.uniform(-spread, spread)) + complex(*leg.end.place) / 2
                for leg in trip.legs
                for _ in range(30)
            ]  # fmt: skip
            mapped = None if spots is None else tuple(Place(spot.real, spot.imag) for spot in spots)
            rail = published_rail(replace(trip, panoramas=mapped), rule, Script(numbers))
            expected = _simulated(trip, numbers, rule is Rule.RELATIVE, spots)
            assert _same(_as_simulated(rail), expected)


def test_published_entries_show_what_is_published() -> None:
    for trip in trips(20):
        entries = published_rail(trip, Rule.ABSOLUTE, random.Random(0))
        assert (entries[0].landmarks, entries[0].view.intersection) == ("No landmarks nearby", False)
        for entry in entries:
            turns = entry.action.name == "turn_direction"
            assert entry.view.intersection == (turns and entry is not entries[0])
            if entry.action.name == "forward":
                assert (entry.landmarks, entry.view.sighting) == ("No landmarks nearby", None)
        assert entries[-1].landmarks.startswith("The destination ")
        ends = [entry for entry in entries[1:] if entry.action.name != "forward"]
        assert [entry.landmarks.removeprefix("The destination ") for entry in ends] == [
            "No landmark nearby" if leg.end.sighting is None else leg.end.sighting.sentence
            for leg in trip.legs
        ]


def test_nodes_off_their_panoramas_are_moved_before_gaps_are_measured() -> None:
    (trip,) = [t for t in trips(30) if len(t.legs) == 1][:1]
    start, leg = trip.start.place, trip.legs[0]
    end = Place(start.east + 30, start.north)
    there = replace(trip, legs=(replace(leg, end=replace(leg.end, place=end)),))

    def rail(*shifts: float) -> list[Entry]:
        """Panoramas so many metres east of the start."""
        spots = tuple(Place(start.east + shift, start.north) for shift in shifts)
        return published_rail(replace(there, panoramas=spots), Rule.ABSOLUTE, Script([0.5] * 5))

    def seen(entries: list[Entry]) -> list[int]:
        return sorted({round(entry.view.place.east - start.east) for entry in entries})

    assert seen(rail(0, 15, 30)) == [0, 15, 30]
    assert seen(rail(4, 15, 40)) == [4, 15, 40], "the nodes themselves are moved"
    assert seen(rail(8, 15, 30)) == [8, 30], "15 is not 8 m from where one stands"
    assert [e.view.place for e in rail()] == [start, end], "without a panorama nearby they stay"


def test_legs_of_five_metres_have_nothing_between_and_places_near_a_node_are_left_out() -> None:
    (trip,) = [t for t in trips(30) if len(t.legs) == 1][:1]
    leg = trip.legs[0]

    def rail(metres: float) -> list[Entry]:
        end = Place(trip.start.place.east + metres, trip.start.place.north)
        short = replace(trip, legs=(replace(leg, end=replace(leg.end, place=end)),))
        return published_rail(short, Rule.ABSOLUTE, Script([0.5] * 5))

    assert len(rail(5.0)) == 2
    assert len(rail(15.0)) == 2  # at 3, 6, 9, 12 and 15 m: all within 8 m of an end
    assert len(rail(20.0)) == 2  # 8 and 12 m are 8 m from an end, not farther
    assert len(rail(21.0)) == 4  # at 8.4 and 12.6 m
    assert len(rail(50.0)) == 6  # at 10, 20, 30 and 40 m


def test_relocation() -> None:
    spots = (Place(0, 0), Place(50, 0))
    assert relocated(Place(3, 4), None) == (3, 4)
    assert relocated(Place(3, 4), spots) == (0, 0)
    assert relocated(Place(40, 0), spots) == (50, 0)
    assert relocated(Place(25, 0), spots) is None
    assert relocated(Place(20, 0), spots) is None  # closer than 20 m it must be
    assert relocated(Place(0, 0), ()) is None


def test_the_mended_rail_tells_the_truth_and_its_turns_lead_on() -> None:
    """Every entry's facing is the direction in which the next place lies, unless a turn comes first."""
    for trip in trips(40):
        assert trip.city is not None
        entries = mended_rail(trip, Rule.ABSOLUTE, random.Random(1))
        nodes = {place: node for node, place in enumerate(trip.city.nodes)}
        walked = [nodes[entry.view.place] for entry in entries if entry.view.place in nodes]
        assert tuple(walked) == trip.nodes
        for entry, after in pairwise(entries):
            there = complex(*after.view.place) - complex(*entry.view.place)
            bearing = (90 - math.degrees(cmath.phase(there))) % 360
            word = COMPASS[round(bearing / 45) % 8]
            facing = (
                COMPASS[round(entry.view.facing / 45) % 8]
                if entry.action.name == "forward"
                else entry.action.word
            )
            assert facing == word or abs((bearing % 45) - 22.5) < 1
            if entry.view.place in nodes:
                streets = trip.city.ways[nodes[entry.view.place]]
                assert entry.view.intersection == (len(streets) >= 3)
            else:
                assert (entry.view.intersection, entry.view.sighting) == (False, None)


def test_absolute_and_relative_rails_differ_in_words_only_and_agree_after_rotation() -> None:
    for trip in trips(40):
        absolute, relative = (mended_rail(trip, rule, random.Random(5)) for rule in Rule)
        assert [entry.view for entry in absolute] == [entry.view for entry in relative]
        for one, other in zip(absolute, relative, strict=True):
            assert one.action.name == other.action.name
            if not one.action.word:
                continue
            facing = round(one.view.facing / 45) % 8
            eighths = (COMPASS.index(one.action.word) - facing + 3) % 8 - 3
            expected = ("slightly " if abs(eighths) == 1 else "") + ("right" if eighths > 0 else "left")
            assert other.action.word == expected


def _quarter(place: Place) -> Place:
    """Turned by 90 degrees clockwise."""
    return Place(place.north, -place.east)


def test_a_turned_city_keeps_its_relative_routes_and_turns_its_compass() -> None:
    for trip in trips(20):
        city = trip.city
        assert city is not None
        turned_city = replace(
            city,
            nodes=tuple(map(_quarter, city.nodes)),
            landmarks=tuple(each._replace(place=_quarter(each.place)) for each in city.landmarks),
        )
        ends = [trip.nodes.index(city.nodes.index(leg.end.place)) for leg in trip.legs]
        begins = [0, *ends[:-1]]
        stops = [
            Stop(trip.nodes[begin], (leg.heading + 90) % 360, leg.street)
            for begin, leg in zip(begins, trip.legs, strict=True)
        ]
        other = routes.trip(turned_city, [*stops, Stop(trip.nodes[-1], 0, "")])
        assert other is not None
        other = other.facing((trip.start.facing + 90) % 360)
        words = {
            rule: [
                [
                    entry.action.word
                    for entry in mended_rail(each, rule, random.Random(2))
                    if entry.action.word
                ]
                for each in (trip, other)
            ]
            for rule in Rule
        }
        before, after = words[Rule.RELATIVE]
        assert before == after
        before, after = words[Rule.ABSOLUTE]
        assert after == [COMPASS[(COMPASS.index(word) + 2) % 8] for word in before]
        assert [leg.end.sighting for leg in other.legs] == [leg.end.sighting for leg in trip.legs]
