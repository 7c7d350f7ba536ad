"""A small town written by hand, with its one trip.

3 --- 4
|
1 (Red Inn) --- 2 (Old Mill)        north is up, a block is 100 m
|
0
"""

from __future__ import annotations

from rlpost.envs.navigation.city import City, Landmark, Street
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.routes import Stop, trip
from rlpost.envs.navigation.trips import Trip

TOWN = City(
    "grid",
    (Place(0, 0), Place(0, 100), Place(100, 100), Place(0, 200), Place(100, 200)),
    (
        Street(0, 1, "Main Street"),
        Street(1, 2, "Oak Road"),
        Street(1, 3, "Main Street"),
        Street(3, 4, "Pine Road"),
    ),
    (Landmark("Red Inn", 1, Place(-10, 110)), Landmark("Old Mill", 2, Place(100, 110))),
)


def town_trip(heading: int) -> Trip:
    """From node 0 north to the Red Inn, then east to the Old Mill."""
    found = trip(TOWN, [Stop(0, 0, "Main Street"), Stop(1, 90, "Oak Road"), Stop(2, 90, "")])
    assert found is not None
    return found.facing(heading)


def city_of(instance: str) -> str:
    """The part of a generated instance that names its city: `grid:5f0c...:3-4-9` is of `grid:5f0c...`."""
    return instance.rpartition(":")[0]
