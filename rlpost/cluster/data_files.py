"""The data files of environments on their way to the nodes of a joined cluster.

    beside the driver   paths become absolute ─▶ small files are copied into a package ─▶ Ray sends it like user modules
    on a node           a path that exists there is used; else the file in the package; else it is missing

The bundled environments declare which of their arguments name files (`paths` in envs/registry.py). On a Ray of one
machine nothing changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rlpost.config.schema import Config
from rlpost.envs import registry

PACKAGE = "rlpost_data"  # its name on the nodes
LIMIT = 64 * 2**20  # bytes of all files that travel; Ray takes at most 100 MiB for a package


def data_files(cfg: Config) -> list[Path]:
    """The absolute paths of the files and folders that the environments read, as far as they exist here."""
    named = registry.data_paths(cfg.env, cfg.env_args)
    other = (
        {} if cfg.retention.env is None else registry.data_paths(cfg.retention.env, cfg.retention.env_args)
    )
    paths = {Path(value).absolute() for value in (*named.values(), *other.values())}
    return sorted(path for path in paths if path.exists())


def with_absolute_paths(cfg: Config) -> Config:
    """The settings for workers that run in another folder than the driver."""
    return _with_paths(cfg, lambda value: str(Path(value).absolute()) if Path(value).exists() else value)


def on_this_node(cfg: Config) -> Config:
    """The settings for a worker: a path that does not exist here becomes that of the file which came with the run."""
    return _with_paths(cfg, lambda value: value if Path(value).exists() else str(sent(Path(value)) or value))


def travelling(paths: Sequence[Path]) -> bool:
    """Whether the files are small enough to be sent to the nodes; else every node must have them."""
    return sum(_bytes(path) for path in paths) <= LIMIT


@contextmanager
def packaged(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The package folder, for Ray, that holds the files if they travel; none if there is nothing to send.

    Ray has read it when `connect` returns.
    """
    if not paths or not travelling(paths):
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="rlpost-data-") as folder:
        package = Path(folder) / PACKAGE
        package.mkdir()
        (package / "__init__.py").touch()
        for path in paths:
            target = package / _key(path) / path.name
            target.parent.mkdir()
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
        yield [package]


def sent(path: Path) -> Path | None:
    """Where the file that the driver has at `path` lies in this worker; None if it was not sent."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    there = Path(found.origin).parent / _key(path) / path.name
    return there if there.exists() else None


def _with_paths(cfg: Config, change: Callable[[str], str]) -> Config:
    """`cfg` with every path in the arguments of its environments changed."""

    def changed(env: str | None, args: dict[str, object]) -> dict[str, object]:
        named = {} if env is None else registry.data_paths(env, args)
        return args | {key: change(value) for key, value in named.items()}

    retention = replace(cfg.retention, env_args=changed(cfg.retention.env, cfg.retention.env_args))
    return replace(cfg, env_args=changed(cfg.env, cfg.env_args), retention=retention)


def _bytes(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files)


def _key(path: Path) -> str:
    """A folder's name for a file, so that files of one name do not meet."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]
