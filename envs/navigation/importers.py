"""From the `data` argument to the trips: generated cities, published routes or an OpenStreetMap extract."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from rlpost.envs.navigation.osm import OpenStreetMap
from rlpost.envs.navigation.published_routes import PANORAMAS, ROUTES, PublishedRoutes
from rlpost.envs.navigation.sources import Generated, Source

_READING = threading.Lock()  # a worker's environments ask for one source at the same time


def open_source(data: str) -> Source:
    """The source of trips. ValueError (DataError) where there is nothing at the path, or nothing readable.

    A file is read once in a process, and again where it has changed: sources never change, so environments share them.
    """
    if not data:
        return Generated()
    path = Path(data)
    with _READING:
        return _source(path, Path.cwd(), tuple(map(_state, (path, path / ROUTES, path / PANORAMAS))))


@lru_cache(maxsize=4)
def _source(path: Path, folder: Path, state: tuple[object, ...]) -> Source:
    """`folder`, from which the path is seen, and `state` say whether what was read is still what is there."""
    if path.is_dir():
        return PublishedRoutes.load(path)
    if path.name.endswith((".osm", ".xml")):
        return OpenStreetMap.load(path)
    if path.name.endswith(".pbf"):
        converted = f"{path.name.partition('.')[0]}.osm"
        raise ValueError(
            f"data={str(path)!r}: PBF is not read; convert it: osmium cat {path.name} -o {converted}"
        )
    raise ValueError(f"data={str(path)!r}: must be a folder with route_infos.json, or an .osm or .xml file")


def _state(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
