from __future__ import annotations

import random
from xml.etree import ElementTree

from rlpost.envs.navigation.city import Landmark
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.picture import svg
from rlpost.envs.navigation.published_routes import read_route
from tests.unit.envs.navigation.published import route
from tests.unit.envs.navigation.town import TOWN, town_trip

NAMESPACE = "{http://www.w3.org/2000/svg}"


def _lines(document: str, kind: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(document)
    found = [line for line in root.iter(f"{NAMESPACE}polyline") if line.get("class") == kind]
    return [
        [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
        for line in found
    ]  # type: ignore[misc]


def test_streets_way_and_walk_lie_where_they_should_with_north_up() -> None:
    document = svg(town_trip(0), (Place(0, 0), Place(0, 100)))
    assert len(_lines(document, "street")) == 4
    (way,), (walked,) = _lines(document, "way"), _lines(document, "walked")
    assert [(x - way[0][0], way[0][1] - y) for x, y in way] == [(0, 0), (0, 100), (100, 100)]
    assert walked == way[:2]
    for name in ("Red Inn", "Old Mill", "Main Street", "Pine Road"):
        assert document.count(f">{name}<") == 1


def test_names_cannot_break_out_of_the_document() -> None:
    city = TOWN.__class__(
        "grid", TOWN.nodes, TOWN.streets, (*TOWN.landmarks, Landmark("<script>&", 3, Place(0, 210)))
    )
    trip = town_trip(0)
    document = svg(trip.__class__(trip.instance, trip.start, trip.legs, city, trip.nodes), ())
    assert "<script>" not in document
    assert ElementTree.fromstring(document) is not None


def test_published_routes_have_pictures_too() -> None:
    document = svg(read_route(route()).trip, ())
    assert "Joe&#39;s" in document or "Joe's Pizza" in document
    assert len(_lines(document, "way")[0]) == 3


def test_the_walk_grows() -> None:
    env = Navigation()
    env.reset(seed=3)
    lengths = []
    for _, answer, _ in env.expert(False, random.Random(0)):
        lengths.append(len(_lines(env.picture(), "walked")[0]))
        env.step(answer)
    assert lengths == list(range(1, len(lengths) + 1))
