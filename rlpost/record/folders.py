"""Folders for runs: a new one that no other process uses."""

from __future__ import annotations

import contextlib
import itertools
from datetime import datetime
from pathlib import Path

from rlpost.errors import OutputError
from rlpost.record.files import writing

OUTPUTS = Path("outputs")
ROWS, CONSOLE = "data.jsonl", "console.log"  # may be there before a run


def time_stamp() -> str:
    """The current time for folder names, to the second."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def new_folder(path: Path | str | None, default: Path, first: str) -> Path:
    """Make a folder that no other process uses, with the folder `first` in it.

    `path` may exist if it is empty, but for ROWS and CONSOLE. If it is None, the folder is `default`, or `default`-2,
    -3 and so on if that exists. If two processes ask for the same `path` at once, the one that makes `first` gets it.

    Raises OutputError if the folder cannot be written or already contains something.
    """
    if path is None:
        folder = _unused(default)
    else:
        folder = Path(path)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if holds_files(folder):
                raise OutputError(_not_empty(folder))
    if not _made(folder / first):
        raise OutputError(_not_empty(folder))
    return folder


def holds_files(folder: Path) -> bool:
    """Whether a folder is taken: it holds more than the Python API writes before a run."""
    return any(path.name not in (ROWS, CONSOLE) for path in folder.iterdir())


def reserved(path: Path | str | None, name: str, seed: int) -> Path:
    """A folder for `RunDir.create`: `path`, or a new outputs/<name>/<time>-<seed>. Raises OutputError."""
    if path is None:
        return _unused(default_folder(name, seed))
    with writing(Path(path)):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def default_folder(name: str, seed: int) -> Path:
    return OUTPUTS / name / f"{time_stamp()}-{seed}"


def _unused(default: Path) -> Path:
    """The first free name of `default`, `default`-2 and so on, as a folder made by this call."""
    numbered = (default.with_name(f"{default.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([default], numbered) if _made(folder))


def _made(folder: Path) -> bool:
    """Whether this call made the folder, and not an earlier one."""
    with writing(folder), contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        return True
    return False


def _not_empty(folder: Path) -> str:
    return (
        f"output_dir={folder}\n  reason: the folder is not empty\n"
        "  remedy: choose another; to go on with what it holds, resume=<that folder>"
    )
