"""A policy in a folder: its adapter in PEFT's format, and the canary that proves its swap."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rlpost.errors import CheckpointError
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter

CANARY_FILE = "canary.json"


def write(folder: Path, adapter: Adapter, canary: Canary) -> None:
    """Write the files into a folder that is there."""
    adapter.write(folder)
    (folder / CANARY_FILE).write_text(json.dumps(asdict(canary)), encoding="utf-8")


def read(folder: Path) -> tuple[Adapter, Canary]:
    """Inverse of `write`. Raises AdapterError or CheckpointError if a file is missing or damaged."""
    return Adapter.load(folder), _canary(folder / CANARY_FILE)


def _canary(path: Path) -> Canary:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return Canary(tuple(written["token_ids"]), tuple(written["logprobs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}\n  reason: it cannot be read ({error})\n  remedy: restore the file from a copy of the run"
        ) from error
