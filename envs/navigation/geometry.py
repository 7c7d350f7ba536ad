"""Directions and distances. Headings are whole degrees, clockwise from north (0); places are in metres."""

from __future__ import annotations

import math
from typing import NamedTuple

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
RELATIVE = ("left", "slightly left", "slightly right", "right")
SIDES = ("front", "right front", "right", "right behind", "behind", "left behind", "left", "left front")
FULL_TURN = 360
SECTOR = 45  # degrees per compass word
SECTORS = FULL_TURN // SECTOR
HALF = SECTORS // 2

_EQUATOR = 6_378_137.0  # m, WGS84
_FLATNESS = 0.00669437999014  # first eccentricity squared, WGS84


class Place(NamedTuple):
    """Metres east and north of some origin."""

    east: float
    north: float


def distance(a: Place, b: Place) -> float:
    return math.hypot(b.east - a.east, b.north - a.north)


def between(a: Place, b: Place, share: float) -> Place:
    """The point at `share` of the straight way from a to b; share 1 is b."""
    return Place(a.east + share * (b.east - a.east), a.north + share * (b.north - a.north))


def heading(a: Place, b: Place) -> int:
    """The direction from a to b, 0 to 359."""
    return round(math.degrees(math.atan2(b.east - a.east, b.north - a.north))) % FULL_TURN


def wrapped(angle: int) -> int:
    """The same turn, in degrees above -180 up to 180."""
    return -((-angle + 180) % FULL_TURN - 180)


def _sector(angle: int) -> int:
    return (2 * angle + SECTOR) // (2 * SECTOR) % SECTORS


def compass_word(angle: int) -> str:
    """The word whose sector of 45 degrees contains the heading: north is from 337.5 to below 22.5."""
    return COMPASS[_sector(angle)]


def side(facing: int, towards: int) -> str:
    """The side on which someone who faces `facing` sees something, as one of eight words."""
    return SIDES[_sector(towards - facing)]


def eighths(facing: int, towards: int) -> int:
    """The clockwise turn from one compass word to another in eighths of a circle, -3 to 4."""
    turn = (_sector(towards) - _sector(facing)) % SECTORS
    return turn - SECTORS if turn > HALF else turn


def relative_word(facing: int, towards: int) -> str:
    """The turn between two headings, for someone who knows only their compass words.

    One eighth is slight, more is full. If the words do not decide (the same word, or opposite ones), the degrees
    decide.
    """
    turn, exact = eighths(facing, towards), wrapped(towards - facing)
    if turn == 0:
        return "slightly right" if exact > 0 else "slightly left"
    if turn == HALF:
        return "left" if exact < 0 else "right"
    if abs(turn) == 1:
        return "slightly right" if turn > 0 else "slightly left"
    return "right" if turn > 0 else "left"


def published_relative_word(facing: int, towards: int) -> str:
    """The published turn. It does not wrap around: from 350 to 10 it is `left`."""
    turn = towards - facing
    if turn < -SECTOR:
        return "left"
    if turn > SECTOR:
        return "right"
    return "slightly left" if turn <= 0 else "slightly right"


class Position(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


def flattened(position: Position, origin: Position) -> Place:
    """A position on the plane that touches WGS84's ellipsoid at the origin, accurate to 0.1% within some kilometres."""
    latitude = math.radians(origin.latitude)
    bulge = 1 - _FLATNESS * math.sin(latitude) ** 2
    north_radius = _EQUATOR * (1 - _FLATNESS) / bulge**1.5
    east_radius = _EQUATOR / math.sqrt(bulge) * math.cos(latitude)
    east = math.radians(math.remainder(position.longitude - origin.longitude, FULL_TURN))
    return Place(east_radius * east, north_radius * math.radians(position.latitude - origin.latitude))
