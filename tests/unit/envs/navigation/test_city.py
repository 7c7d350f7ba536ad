from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from rlpost.envs.navigation.city import City
from rlpost.envs.navigation.generator import STYLES, generate
from rlpost.envs.navigation.geometry import compass_word
from rlpost.envs.navigation.names import MODERN, OLD_TOWN
from rlpost.envs.navigation.sources import Generated
from rlpost.envs.navigation.variants import VARIANTS
from rlpost.envs.splits import Split, split_of
from tests.unit.envs.navigation.town import city_of

CITIES = 60


def cities(style: str) -> list[City]:
    return [generate(style, seed) for seed in range(CITIES)]


def _components(city: City) -> int:
    """By union of sets, with no walking."""
    groups = [{node} for node in range(len(city.nodes))]
    for a, b, _ in city.streets:
        left, right = (next(group for group in groups if node in group) for node in (a, b))
        if left is not right:
            groups.remove(right)
            left |= right
    return len(groups)


@pytest.mark.parametrize("style", list(STYLES))
def test_cities_are_connected_and_every_turn_has_its_own_word(style: str) -> None:
    for city in cities(style):
        assert _components(city) == 1
        assert len(city.nodes) > 10
        for leaving in city.ways:
            words = [compass_word(way.heading) for way in leaving]
            assert len(words) == len(set(words))
        for node, leaving in enumerate(city.ways):
            assert all(node in [back.to for back in city.ways[way.to]] for way in leaving)


def _parameters(p: complex, q: complex, r: complex, s: complex) -> tuple[float, float]:
    """How far along p-q and along r-s the two lines meet, from 0 to 1 each (Cramer's rule)."""
    determinant = ((q - p).conjugate() * (s - r)).imag
    if determinant == 0:
        return -1.0, -1.0
    along = ((r - p).conjugate() * (s - r)).imag / determinant
    return along, ((r - p).conjugate() * (q - p)).imag / determinant


@pytest.mark.parametrize("style", list(STYLES))
def test_streets_meet_at_nodes_only(style: str) -> None:
    for city in cities(style)[:25]:
        ends = [(complex(*city.nodes[a]), complex(*city.nodes[b])) for a, b, _ in city.streets]
        for one, other in combinations(ends, 2):
            meeting = _parameters(*one, *other)
            assert not all(0.001 < share < 0.999 for share in meeting), (city.style, one, other)


@pytest.mark.parametrize("style", list(STYLES))
def test_no_landmark_is_named_twice_in_a_city_and_none_stands_far_from_its_node(style: str) -> None:
    for city in cities(style):
        names = [landmark.name for landmark in city.landmarks]
        assert len(names) == len(set(names))
        nodes = [landmark.node for landmark in city.landmarks]
        assert len(nodes) == len(set(nodes))
        assert 0.3 < len(nodes) / len(city.nodes) < 0.95
        for landmark in city.landmarks:
            east, north = city.nodes[landmark.node]
            away = ((landmark.place.east - east) ** 2 + (landmark.place.north - north) ** 2) ** 0.5
            assert 7.9 < away < 15.1


@pytest.mark.parametrize("style", list(STYLES))
def test_cities_have_dead_ends_bends_and_crossings_and_streets_of_several_blocks(style: str) -> None:
    degrees = Counter(len(leaving) for city in cities(style) for leaving in city.ways)
    total = sum(degrees.values())
    for degree, least in ((1, 0.02), (2, 0.05), (3, 0.2), (4, 0.1)):
        assert degrees[degree] / total > least
    blocks = Counter((city.digest, street.name) for city in cities(style) for street in city.streets)
    assert max(blocks.values()) >= 4


def test_grids_have_diagonals_and_are_not_all_alike() -> None:
    crossings = [len(leaving) for city in cities("grid") for leaving in city.ways]
    assert max(crossings) > 4  # where a diagonal crosses the grid
    assert len({len(city.nodes) for city in cities("grid")}) > 10


def test_the_held_out_family_shares_no_word_for_a_landmark() -> None:
    def words(vocabulary: object) -> set[str]:
        assert vocabulary in (MODERN, OLD_TOWN)
        return {*vocabulary.first, *vocabulary.kinds}  # type: ignore[attr-defined]

    assert not words(MODERN) & words(OLD_TOWN)
    seen = {
        style: {w for c in cities(style) for lm in c.landmarks for w in lm.name.split()} for style in STYLES
    }
    assert not seen["grid"] & seen["rings"]
    assert [name for name, v in VARIANTS.items() if v.style != "grid" and not v.held_out] == []


def test_a_seed_makes_one_city_and_the_digest_tells_any_two_apart() -> None:
    again = generate.__wrapped__("grid", 5)
    assert again is not generate("grid", 5)
    assert (again.digest, again.nodes, again.landmarks) == (
        generate("grid", 5).digest,
        generate("grid", 5).nodes,
        generate("grid", 5).landmarks,
    )
    assert len({city.digest for style in STYLES for city in cities(style)}) == CITIES * len(STYLES)
    renamed = replace(again, landmarks=(again.landmarks[0]._replace(name="X"), *again.landmarks[1:]))
    assert renamed.digest != again.digest


def test_splits_part_cities_not_only_routes() -> None:
    source, rng = Generated(), random.Random(0)
    drawn = {
        split: {city_of(source.draw(VARIANTS["absolute"], split, 2, rng).instance) for _ in range(60)}
        for split in (Split.TRAIN, Split.EVAL)
    }
    assert not drawn[Split.TRAIN] & drawn[Split.EVAL]
    for split, keys in drawn.items():
        assert {split_of(key) for key in keys} == {split}
