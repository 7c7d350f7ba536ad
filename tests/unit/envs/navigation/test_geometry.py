"""Directions against the definition by vectors, for every pair of whole degrees that matters."""

from __future__ import annotations

import cmath
import math
from itertools import product

import pytest

from rlpost.envs.navigation.geometry import (
    COMPASS,
    RELATIVE,
    SIDES,
    Place,
    Position,
    compass_word,
    eighths,
    flattened,
    heading,
    published_relative_word,
    relative_word,
    side,
    wrapped,
)


def _unit(degrees: float) -> complex:
    """Clockwise from north, as a point of the plane with north up."""
    return cmath.exp(1j * math.radians(90 - degrees))


def _closest(degrees: float, words: tuple[str, ...]) -> str:
    """The word whose direction has the largest dot product."""
    return max(words, key=lambda word: (_unit(degrees) * _unit(45 * words.index(word)).conjugate()).real)


def test_compass_words_are_the_closest_of_eight() -> None:
    assert [compass_word(angle) for angle in range(360)] == [_closest(angle, COMPASS) for angle in range(360)]
    assert compass_word(22) == "north" != compass_word(23) == "northeast"
    assert compass_word(337) == "northwest" != compass_word(338) == "north"


def test_sides_are_compass_words_of_the_turned_world() -> None:
    for facing, towards in product(range(0, 360, 7), range(360)):
        assert side(facing, towards) == _closest(towards - facing, SIDES)
    assert side(90, 0) == "left"
    assert side(350, 35) == "right front"


def test_wrapped_angles_are_the_argument_of_the_quotient() -> None:
    for angle in range(-719, 720):
        phase = -math.degrees(cmath.phase(_unit(angle) / _unit(0)))
        assert math.cos(math.radians(wrapped(angle) - phase)) > 0.999999
        assert -180 < wrapped(angle) <= 180


def test_heading_is_clockwise_from_north() -> None:
    ends = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    assert [heading(Place(0, 0), Place(*end)) for end in ends] == list(range(0, 360, 45))
    assert heading(Place(0, 0), Place(-0.001, 1)) == 0


RELATIVE_ROWS = [
    (0, 90, "right"),
    (0, 45, "slightly right"),
    (0, 315, "slightly left"),
    (0, 270, "left"),
    (0, 135, "right"),
    (0, 225, "left"),
    (350, 40, "slightly right"),  # north to northeast, though 350 and 40 are 50 degrees apart
    (350, 80, "right"),
    (10, 280, "left"),
    (350, 10, "slightly right"),  # the same word: the degrees decide
    (10, 350, "slightly left"),
    (0, 0, "slightly left"),
    (0, 179, "right"),  # opposite words: the degrees decide
    (0, 181, "left"),
    (0, 180, "right"),
]


@pytest.mark.parametrize(("facing", "towards", "word"), RELATIVE_ROWS)
def test_relative_words(facing: int, towards: int, word: str) -> None:
    assert relative_word(facing, towards) == word


def test_relative_words_follow_from_the_compass_words_where_these_tell_a_turn() -> None:
    """Facing and target as words, rotated together, mean the same turn: what the held-out rule asks for."""
    meaning: dict[int, set[str]] = {}
    for facing, towards in product(range(360), range(0, 360, 3)):
        turn = (COMPASS.index(compass_word(towards)) - COMPASS.index(compass_word(facing))) % 8
        meaning.setdefault(turn, set()).add(relative_word(facing, towards))
        for eighth in range(1, 8):
            turned = relative_word((facing + 45 * eighth) % 360, (towards + 45 * eighth) % 360)
            assert turned == relative_word(facing, towards)
    assert {turn: words for turn, words in meaning.items() if turn not in (0, 4)} == {
        1: {"slightly right"},
        2: {"right"},
        3: {"right"},
        5: {"left"},
        6: {"left"},
        7: {"slightly left"},
    }
    assert {eighths(0, 45 * turn) for turn in range(8)} == set(range(-3, 5))


def _published(facing: int, towards: int, wraps: bool) -> str:
    turn = towards - facing
    if wraps:
        turn = (turn + 180) % 360 - 180
    names = [(-45, "left"), (0, "slightly left"), (45, "slightly right")]
    if turn < -45:
        return "left"
    return next((name for bound, name in names[1:] if turn <= bound), "right")


def test_published_relative_words_do_not_wrap() -> None:
    pairs = list(product(range(360), repeat=2))
    assert all(published_relative_word(*pair) == _published(*pair, wraps=False) for pair in pairs)
    assert published_relative_word(350, 10) == "left"
    assert published_relative_word(10, 350) == "right"
    differs = sum(_published(*pair, wraps=False) != _published(*pair, wraps=True) for pair in pairs)
    assert differs / len(pairs) == pytest.approx(0.25, abs=0.005)  # as measured on the published code
    assert {published_relative_word(*pair) for pair in pairs[::97]} == set(RELATIVE)


@pytest.mark.parametrize("origin", [(0.0, 0.0), (40.7128, -74.006), (-33.86, 151.2), (64.1, -21.9)])
def test_flattened_positions_agree_with_the_sphere(origin: tuple[float, float]) -> None:
    """Haversine on a sphere is within 0.6% of the ellipsoid; the plane is the better of the two."""
    start = Position(*origin)
    for north, east in [(0.001, 0.0), (0.0, 0.001), (-0.002, 0.0015)]:
        end = Position(start.latitude + north, start.longitude + east)
        a, b, width = (
            math.radians(start.latitude),
            math.radians(end.latitude),
            math.radians(end.longitude - start.longitude),
        )
        cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(width)
        place = flattened(end, start)
        assert math.hypot(*place) == pytest.approx(6_371_000 * math.acos(cosine), rel=0.007)
        assert (place.north > 0) == (north > 0)
        assert (place.east > 0) == (east > 0)


def test_flattened_positions_know_the_ellipsoid_and_the_date_line() -> None:
    """Lengths of a degree from tables of WGS84: 110,574 m of latitude and 111,320 m of longitude at the equator."""
    assert flattened(Position(0.001, 0), Position(0, 0)).north == pytest.approx(110.574, abs=0.001)
    assert flattened(Position(0, 0.001), Position(0, 0)).east == pytest.approx(111.320, abs=0.001)
    assert flattened(Position(60, 0.001), Position(60, 0)).east == pytest.approx(55.800, abs=0.001)
    assert flattened(Position(0, -179.9995), Position(0, 179.9995)).east == pytest.approx(111.32, abs=0.01)
