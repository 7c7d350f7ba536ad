"""From the `data` argument to the trips: generated cities, published routes or an OpenStreetMap extract."""

from __future__ import annotations

from pathlib import Path

from envs.navigation.osm import OpenStreetMap
from envs.navigation.published_routes import PublishedRoutes
from envs.navigation.sources import Generated, Source


def open_source(data: str) -> Source:
    """The source of trips. ValueError (DataError) where there is nothing at the path, or nothing readable."""
    if not data:
        return Generated()
    path = Path(data)
    if path.is_dir():
        return PublishedRoutes.load(path)
    if path.name.endswith((".osm", ".xml")):
        return OpenStreetMap.load(path)
    if path.name.endswith(".pbf"):
        raise ValueError(
            f"data={data!r}: PBF is not read; convert it: osmium cat {path.name} -o {path.name.partition('.')[0]}.osm"
        )
    raise ValueError(f"data={data!r}: must be a folder with route_infos.json, or an .osm or .xml file")
