"""Opens the source of trips for the `data` argument: generated cities, published routes or an OpenStreetMap extract."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from rlpost.envs.navigation.osm import OpenStreetMap
from rlpost.envs.navigation.published_routes import PANORAMAS, ROUTES, PublishedRoutes
from rlpost.envs.navigation.sources import Generated, Source

_READING = threading.Lock()  # several environments of one worker ask for a source at the same time


def open_source(data: str) -> Source:
    """The source of trips. Raises ValueError (DataError) if nothing is at the path or it cannot be read.

    A file is read once per process, and again if it changes. Environments share sources, because sources never change.
    """
    if not data:
        return Generated()
    path = Path(data)
    with _READING:
        return _source(path, Path.cwd(), tuple(map(_state, (path, path / ROUTES, path / PANORAMAS))))


@lru_cache(maxsize=4)
def _source(path: Path, folder: Path, state: tuple[object, ...]) -> Source:
    """Read the source. `folder` (the base of relative paths) and `state` are only cache keys for unchanged files."""
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
    """Values that change when a file changes; None if the file cannot be examined."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
