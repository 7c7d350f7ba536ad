"""What `algo.teacher` names: an adapter of the policy's model (a folder with PEFT's files), or another model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlpost.weights import models
from rlpost.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter
from rlpost.weights.stored_model import weight_files


def is_adapter(teacher: str) -> bool:
    """Whether `teacher` names an adapter's folder; otherwise it is a model's folder or name."""
    return (Path(teacher) / CONFIG_FILE).is_file()


def load(teacher: str) -> Adapter | Path:
    """The adapter, or the folder of the model. Raises AdapterError or ModelError if it cannot be read or found."""
    return Adapter.load(Path(teacher)) if is_adapter(teacher) else models.resolve(teacher)


def fingerprint(teacher: str) -> str:
    """SHA-256 over the names and bytes of the teacher's settings and weights. Raises ModelError like `load`."""
    digest = hashlib.sha256()
    for path in _files(teacher):
        with path.open("rb") as file:
            digest.update(f"{path.name}|{hashlib.file_digest(file, 'sha256').hexdigest()}|".encode())
    return digest.hexdigest()


def _files(teacher: str) -> list[Path]:
    if is_adapter(teacher):
        return [Path(teacher) / CONFIG_FILE, Path(teacher) / WEIGHTS_FILE]
    folder = models.resolve(teacher)
    return [folder / "config.json", *weight_files(folder)]
