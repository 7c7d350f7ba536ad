"""What a machine has of that which a run needs. It runs on every node, so it imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlpost.cluster.data_files import sent
from rlpost.errors import RlpostError
from rlpost.record.versions import versions
from rlpost.weights import models
from rlpost.weights.stored_model import fingerprint


@dataclass(frozen=True)
class Wanted:
    """What a run needs on a node."""

    models: Mapping[str, tuple[str, str]]  # by setting: the name for other nodes, and the driver's folder
    data: tuple[str, ...]  # absolute paths of the data files
    temporary: int  # free bytes of the temporary folder


@dataclass(frozen=True)
class Facts:
    """What a machine has of it."""

    versions: Mapping[str, Any]  # see rlpost.record.versions
    code: str  # SHA-256 over rlpost's own modules
    free: int  # bytes in the temporary folder
    found: dict[str, str] = field(default_factory=dict)  # fingerprints of models and data, by setting or path
    missing: dict[str, str] = field(default_factory=dict)  # the reasons, of those that are not there


def facts(wanted: Wanted) -> Facts:
    """The facts of the machine that this runs on."""
    here = Facts(versions(), _code(), shutil.disk_usage(tempfile.gettempdir()).free)
    for setting, (name, folder) in wanted.models.items():
        if models.is_fetched(name) and not Path(folder).is_dir():
            continue  # a worker that starts here finds it in this node's cache, or fetches it
        try:
            here.found[setting] = fingerprint(models.on_this_node(name, Path(folder)))
        except RlpostError as error:
            here.missing[setting] = str(error).splitlines()[0]
    for path in map(Path, wanted.data):
        place = path if path.exists() else sent(path)
        if place is None:
            here.missing[str(path)] = "there is no such file or folder"
        else:
            here.found[str(path)] = _bytes_of(place)
    return here


def _code() -> str:
    """SHA-256 over the modules of rlpost that this process would import."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    # In a checkout rlpost/envs is a link, which Ray's copy holds as a folder.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for path in sorted(Path(folder) / file for file in files if file.endswith(".py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"|" + path.read_bytes())
    return digest.hexdigest()


def _bytes_of(path: Path) -> str:
    """SHA-256 over a file, or over the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            with each.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{each.relative_to(path)}|{whole}|".encode())
    return digest.hexdigest()
