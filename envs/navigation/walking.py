"""The effects of the three actions in a city: walking along streets and turning towards them."""

from __future__ import annotations

from typing import NamedTuple

from rlpost.envs.navigation.city import City, Way
from rlpost.envs.navigation.geometry import SECTOR, eighths, wrapped
from rlpost.envs.navigation.rules import Rule


class Pose(NamedTuple):
    node: int
    heading: int  # degrees


def ahead(city: City, pose: Pose) -> Way | None:
    """The street in the direction that the walker faces, if any."""
    return next((way for way in city.ways[pose.node] if way.heading == pose.heading), None)


def _onward(city: City, way: Way, start: int) -> int:
    """The heading at the end of a way: along the street's bend, or the street straight on, or unchanged."""
    onward = [each for each in city.ways[way.to] if each.to != start]
    if len(onward) == 1 and not city.is_intersection(way.to):
        return onward[0].heading
    straight = [each for each in onward if _goes_straight_on(way.heading, each.heading)]
    if not straight:
        return way.heading
    return min(straight, key=lambda each: abs(wrapped(each.heading - way.heading))).heading


def _goes_straight_on(before: int, after: int) -> bool:
    return eighths(before, after) == 0 or 2 * abs(wrapped(after - before)) <= SECTOR


def forward(city: City, pose: Pose) -> Pose | None:
    """The pose at the next node along the street ahead, facing onwards; None if no street is ahead."""
    way = ahead(city, pose)
    return None if way is None else Pose(way.to, _onward(city, way, pose.node))


def turn(city: City, pose: Pose, word: str, rule: Rule) -> Pose | None:
    """The pose facing the street that a word of the rule names; None if no street lies that way.

    If several streets match, it is the one with the smallest turn, as a person would choose.
    """
    found = [way for way in city.ways[pose.node] if rule.word(pose.heading, way.heading) == word]
    if not found:
        return None
    chosen = min(found, key=lambda way: (abs(eighths(pose.heading, way.heading)), way.heading))
    return Pose(pose.node, chosen.heading)
