from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpost.envs.navigation.data_files import DataError
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.geometry import Position
from rlpost.envs.navigation.published_routes import PublishedRoutes, read_route, read_routes
from rlpost.envs.splits import Split, split_of
from tests.unit.envs.navigation.published import milestones, route, write


def test_a_route_is_read_as_written() -> None:
    trip = read_route(route()).trip
    assert [(leg.heading, leg.compass) for leg in trip.legs] == [(0, "north"), (90, "east")]
    sightings = [leg.end.sighting for leg in trip.legs]
    assert sightings == [("Joe's Pizza", "left front"), ("Café Été", "right")]
    assert [leg.end.intersection for leg in trip.legs] == [True, False]
    north, east = (leg.end.place for leg in trip.legs)
    assert north.east == 0
    assert north.north == pytest.approx(111.0, abs=0.1)  # a degree of latitude at 40 is 111,035 m
    assert east.east == pytest.approx(85.4, abs=0.1)  # a degree of longitude at 40.0 is 85,394 m
    assert read_route(route()).origin == Position(40.0, -74.0)


def test_landmarks_in_all_their_forms() -> None:
    rows = [
        ("No landmark nearby", "0 (north)"),
        ("No landmarks nearby", "10 (north)"),
        ("The Shop is on your left is on your right behind", "45 (northeast)"),
        ("Somewhere else", "359 (north)"),
        ("The destination A: B, C is on your front", "300 (northwest)"),
    ]
    found = read_route(
        route(milestone_info=milestones(*rows), route_results={"geocode_list": [[40.0, -74.0]] * 5})
    )
    assert [leg.end.sighting for leg in found.trip.legs] == [
        None,
        None,
        ("The Shop is on your left", "right behind"),
        ("Somewhere else", ""),
        ("A: B, C", "front"),
    ]


def test_what_the_published_reader_takes_is_taken() -> None:
    rough = """{
to_next_intersection_heading: '0 (north)'
this line has no colon
}
{ }

{"landmarks": "Joe's is on your left",
"to_next_intersection_heading": "90 (east)","""
    shape = {key: value for key, value in route(milestone_info=rough).items() if key != "init_heading"}
    trip = read_route(shape).trip
    assert [(leg.heading, leg.compass) for leg in trip.legs] == [(0, "north"), (90, "east")]
    assert [leg.end.sighting for leg in trip.legs] == [None, ("Joe's", "left")]
    assert trip.start.facing == 0


def test_instances_are_the_routes_own(tmp_path: Path) -> None:
    assert read_route(route()).trip.instance == read_route(route(instruction="other")).trip.instance
    other = route(start_place={"relocated_geocode": [40.0, -74.00001]})
    assert read_route(route()).trip.instance != read_route(other).trip.instance


@pytest.mark.parametrize("mode", ["mended", "compat"])
@pytest.mark.parametrize("style", ["short", "published"])
@pytest.mark.parametrize("variant", ["absolute", "relative"])
def test_routes_are_walked_to_their_end(tmp_path: Path, mode: str, style: str, variant: str) -> None:
    folder = write(tmp_path, [[route(), route(init_heading=200)], 7])
    env = Navigation(mode=mode, prompt=style, data=str(folder))
    for seed in range(8):
        observation, info = env.reset(seed=seed, options={"variant": variant, "split": "all"})
        assert observation in env.observation_space
        assert info["instance"].startswith("published:")
        for shown, answer, _ in env.expert(False, random.Random(seed)):
            assert shown == observation
            observation, reward, terminated, _, step = env.step(answer)
            assert reward == 1.0
        assert terminated
        assert step["success"]


def test_panoramas_bound_the_published_rail(tmp_path: Path) -> None:
    import pickle

    nowhere = write(tmp_path, [[route()], 0], pickle.dumps({(10.0, 10.0): "far"}))
    env = Navigation(mode="compat", data=str(nowhere))
    for seed in range(10):
        env.reset(seed=seed)
        assert [answer.count("forward") for _, answer, _ in env.expert(False, random.Random(0))] == [0, 0, 0]
    env = Navigation(mode="compat", data=str(write(tmp_path, [[route()], 0])))
    walks = set()
    for seed in range(30):
        env.reset(seed=seed)
        walks.add(len(env.expert(False, random.Random(0))))
    assert max(walks) > 7
    assert min(walks) < max(walks)


def test_a_heading_of_zero_is_random_and_any_other_is_kept(tmp_path: Path) -> None:
    one, other = read_route(route()).trip, read_route(route(init_heading=200.9)).trip
    assert (one.start.facing, other.start.facing) == (0, 200)
    assert len(first_headings(tmp_path, 0)) > 1
    assert first_headings(tmp_path, 200.9) == {200}


def first_headings(folder: Path, init_heading: float) -> set[int]:
    """What compat makes of a published heading in ten episodes."""
    env = Navigation(mode="compat", data=str(write(folder, [[route(init_heading=init_heading)], 0])))
    found = set()
    for seed in range(10):
        env.reset(seed=seed)
        found.add(env.texts.trip.start.facing)
    return found


def test_splits_and_variants_that_the_data_cannot_serve(tmp_path: Path) -> None:
    env = Navigation(data=str(write(tmp_path, [[route()], 0])))
    with pytest.raises(
        ValueError, match=r"'old_town': only for generated cities; with data there are absolute, r"
    ):
        env.reset(options={"variant": "old_town"})
    other = "eval" if split_of(read_route(route()).trip.instance) is Split.TRAIN else "train"
    with pytest.raises(RuntimeError, match="none of the 1 routes is of split"):
        env.reset(options={"split": other})
    free = Navigation(movement="free", data=str(write(tmp_path, [[route()], 0])))
    with pytest.raises(ValueError, match="published routes have no streets"):
        free.reset(options={"split": "all"})


BROKEN: list[tuple[Any, str]] = [
    ({}, r"must be \[\[route, ...\], number\]"),
    ([[], 0], "at least one route"),
    ([[3], 0], r"route 0: start_place.relocated_geocode is missing"),
    ([[route(), {}], 0], "route 1: start_place.relocated_geocode is missing"),
    ([[route(start_place={"relocated_geocode": [91, 0]})], 0], r"'\[91, 0\]' is not \[latitude, longitude\]"),
    ([[route(start_place={"relocated_geocode": [True, 0]})], 0], "is not"),
    ([[route(start_place={"relocated_geocode": [float("nan"), 0]})], 0], "is not"),
    ([[route(init_heading="north")], 0], "init_heading 'north' is not a number"),
    ([[route(init_heading=float("inf"))], 0], "init_heading 'inf'"),
    ([[route(milestone_info="")], 0], "0 blocks of milestone_info for 2 places"),
    ([[route(milestone_info=milestones(("x", "0 (north)")))], 0], "1 blocks of milestone_info for 2 places"),
    ([[route(milestone_info="{ no colon }{}")], 0], "0 blocks of milestone_info for 2 places"),
    ([[route(milestone_info="{a: b}{c: d}")], 0], "a block of milestone_info has no 'to_next_intersection_heading'"),
    ([[route(milestone_info=milestones(("x", "up"), ("y", "0 (north)")))], 0], "'up' is not like '298"),
    ([[route(milestone_info=milestones(("x", "0 (nord)"), ("y", "0 (north)")))], 0], "is not like"),
    ([[route(milestone_info=7)], 0], "milestone_info not a text"),
    ([[route(route_results={"geocode_list": "x"})], 0], "geocode_list is not a list"),
    ([[route(route_results={"geocode_list": [], }, milestone_info="")], 0], "0 blocks of milestone_info for 0"),
]  # fmt: skip


@pytest.mark.parametrize(("routes", "told"), BROKEN)
def test_broken_routes_are_refused_by_name(tmp_path: Path, routes: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        PublishedRoutes.load(write(tmp_path, routes))
    assert "route_infos.json" in str(caught.value)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"route_infos.json: file: No such file"):
        Navigation(data=str(tmp_path))
    folder = write(tmp_path, [[route()], 0], b"not a pickle")
    with pytest.raises(DataError, match=r"gps_pano_mapping.pkl: file: not a pickle"):
        PublishedRoutes.load(folder)
    (folder / "route_infos.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        read_routes(folder / "route_infos.json")


def _mutated(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value changed at random."""
    value = copy.deepcopy(value)
    path, here = [], value
    while isinstance(here, dict | list) and here and (not path or rng.random() < 0.8):
        key = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        path.append((here, key))
        here = here[key]
    holder, key = path[-1]
    junk = [None, -1, 1e300, "", "}{:", "\ud800", [], {}, [[]], "0 (north)", "9" * 9999 + " (north)", True]
    holder[key] = rng.choice(junk)
    return value


def test_any_changed_route_is_read_or_refused() -> None:
    """Nothing but ValueError comes out, and what is read can be walked."""
    rng, read = random.Random(0), 0
    for _ in range(600):
        changed = _mutated([route()], rng)[0]
        try:
            trip = read_route(changed).trip
        except ValueError:
            continue
        read += 1
        assert trip.legs
    assert read > 50


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_milestones_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert read_route(route(milestone_info=text)).trip.legs


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "route_infos.json"
    whole = json.dumps([[route()], 0]).encode()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.randrange(len(data)) if rng.random() < 0.2 else None]))
        with contextlib.suppress(DataError):
            assert read_routes(path)
