"""Generates any number of cities. A style and a seed determine a city."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

from rlpost.envs.navigation.city import City, Landmark
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.layout import Plan
from rlpost.envs.navigation.names import MODERN, OLD_TOWN, Vocabulary

_LANDMARK_SHARE = 0.65  # share of the nodes that have a landmark
_CORNER = (8.0, 15.0)  # m from a node to its landmark


def _bent(east: float, north: float, tilt: float, bend: float, rng: random.Random) -> tuple[float, float]:
    """A point of a grid that is slightly rotated, with swaying avenues and small random offsets."""
    east += bend * math.sin(north / 120) + rng.uniform(-6, 6)
    north += rng.uniform(-6, 6)
    return east * math.cos(tilt) + north * math.sin(tilt), north * math.cos(tilt) - east * math.sin(tilt)


def _offsets(count: int, rng: random.Random) -> list[float]:
    offsets = [0.0]
    for _ in range(count - 1):
        offsets.append(offsets[-1] + rng.uniform(60, 130))
    return offsets


def _diagonal(plan: Plan, grid: list[list[int]], name: str, rng: random.Random) -> None:
    """Add an avenue across the blocks, as far as there is room."""
    row, column = rng.randrange(len(grid) - 1), rng.randrange(len(grid[0]) - 1)
    while row + 1 < len(grid) and column + 1 < len(grid[0]):
        plan.connect(grid[row][column], grid[row + 1][column + 1], name)
        row, column = row + 1, column + 1


def _dead_ends(plan: Plan, name: Callable[[], str], count: int, rng: random.Random) -> None:
    """Add short dead-end streets at nodes of the plan."""
    for node in rng.sample(range(len(plan.nodes)), min(count, len(plan.nodes))):
        angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(35, 60)
        start = plan.nodes[node]
        end = Place(start.east + reach * math.sin(angle), start.north + reach * math.cos(angle))
        if not plan.crosses(start, end):
            plan.connect(node, plan.node(*end), name())


def _grid(plan: Plan, name: Callable[[], str], rng: random.Random) -> None:
    """Lay streets and avenues, bent and cut, with a diagonal, curves and dead ends."""
    tilt, bend = rng.uniform(-0.3, 0.3), rng.uniform(0, 25)
    easts, norths = _offsets(rng.randint(4, 6), rng), _offsets(rng.randint(4, 6), rng)
    grid = [[plan.node(*_bent(east, north, tilt, bend, rng)) for east in easts] for north in norths]
    for row in grid:
        street = name()
        for a, b in pairwise(row):
            plan.connect(a, b, street)
    for column in zip(*grid, strict=True):
        avenue = name()
        for a, b in pairwise(column):
            plan.connect(a, b, avenue)
    _diagonal(plan, grid, name(), rng)
    plan.cut(0.12, rng)
    plan.curve(rng.randint(2, 5), 0.15, rng)
    _dead_ends(plan, name, rng.randint(1, 4), rng)


def _rings(plan: Plan, name: Callable[[], str], rng: random.Random) -> None:
    """Lay lanes that lead out from a square, and rings around it."""
    spokes, first = rng.randint(5, 7), rng.uniform(0, 2 * math.pi)
    angles = [first + 2 * math.pi * (spoke + rng.uniform(-0.15, 0.15)) / spokes for spoke in range(spokes)]
    square = plan.node(0, 0)
    inner, lanes = [square] * spokes, [name() for _ in angles]
    radius = 0.0
    for _ in range(rng.randint(3, 4)):
        radius += rng.uniform(55, 90)
        radii = [radius * rng.uniform(0.9, 1.1) for _ in angles]
        places = zip(radii, angles, strict=True)
        ring = [plan.node(reach * math.sin(angle), reach * math.cos(angle)) for reach, angle in places]
        around = name()
        for spoke in range(spokes):
            plan.connect(inner[spoke], ring[spoke], lanes[spoke])
            plan.connect(ring[spoke], ring[(spoke + 1) % spokes], around)
        inner = ring
    plan.cut(0.1, rng)
    plan.curve(rng.randint(1, 3), 0.12, rng)
    _dead_ends(plan, name, rng.randint(2, 5), rng)


STYLES: dict[str, tuple[Callable[[Plan, Callable[[], str], random.Random], None], Vocabulary]] = {
    "grid": (_grid, MODERN),
    "rings": (_rings, OLD_TOWN),
}


def _landmarks(nodes: tuple[Place, ...], vocabulary: Vocabulary, rng: random.Random) -> tuple[Landmark, ...]:
    names, landmarks = vocabulary.landmarks(rng), []
    for node, place in enumerate(nodes):
        if rng.random() < _LANDMARK_SHARE:
            angle, away = rng.uniform(0, 2 * math.pi), rng.uniform(*_CORNER)
            corner = Place(place.east + away * math.sin(angle), place.north + away * math.cos(angle))
            landmarks.append(Landmark(next(names), node, corner))
    return tuple(landmarks)


@lru_cache(maxsize=256)
def generate(style: str, seed: int) -> City:
    """The city of a style (a key of STYLES) and a seed. It is connected, and street and landmark names are unique."""
    draw, vocabulary = STYLES[style]
    rng = random.Random(f"{style}:{seed}")
    plan, streets = Plan(), vocabulary.street_names(rng)
    draw(plan, lambda: next(streets), rng)
    nodes, pieces = plan.largest_part()
    return City(style, nodes, pieces, _landmarks(nodes, vocabulary, rng))
