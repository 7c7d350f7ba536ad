"""Writes small files in the published format."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

BLOCK = """{{
"intersection_idx": "{number}",
"landmarks": "{landmarks}",
"distance": "16 meters",
"human_heading": "0",
"to_next_intersection_heading": "{heading}",
}}
"""
START = [40.0, -74.0]


def milestones(*rows: tuple[str, str]) -> str:
    blocks = (
        BLOCK.format(number=n, landmarks=told, heading=heading) for n, (told, heading) in enumerate(rows, 1)
    )
    return "\n\n".join(blocks)


def route(**changes: Any) -> dict[str, Any]:
    """North for about 111 m to Joe's, then east for about 85 m."""
    whole: dict[str, Any] = {
        "dest_place": {"name": "Café Été", "geocode": [40.001, -73.999]},
        "start_place": {"name": "Start", "relocated_geocode": START},
        "route_results": {
            "geocode_list": [[40.001, -74.0], [40.001, -73.999]],
            "polyline": ["x"],
            "landmark_list": [None],
        },
        "init_heading": 0,
        "instruction": "unused",
        "milestone_info": milestones(
            ("Joe's Pizza is on your left front", "0 (north)"),
            ("The destination Café Été is on your right", "90 (east)"),
        ),
    }
    return {**whole, **changes}


def mapping() -> dict[tuple[float, float], str]:
    """Panoramas every 11 m north, then some east."""
    north = {(40.0 + step / 10_000, -74.0): f"n{step}" for step in range(11)}
    return {**north, **{(40.001, -74.0 + step / 5_000): f"e{step}" for step in range(1, 6)}}


def write(folder: Path, routes: object, panoramas: bytes | None = None) -> Path:
    (folder / "route_infos.json").write_text(json.dumps(routes), encoding="utf-8")
    data = pickle.dumps(mapping()) if panoramas is None else panoramas
    (folder / "gps_pano_mapping.pkl").write_bytes(data)
    return folder
