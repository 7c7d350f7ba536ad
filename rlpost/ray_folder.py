"""The folder of a private Ray, which is removed at the latest by the next run on this machine.

Its driver holds a lock on it. The lock ends with the driver, however that ends (SIGKILL, a crash), and is seen from
other containers too: a folder that can be locked has no driver any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "rlpost-run-"
MAX_TEMP_PATH = 22  # Unix socket paths end at 107 bytes, of which Ray's session takes 65 and our folder 20


class RayFolder:
    """A new, locked folder with a short path. Making one removes what killed drivers left."""

    def __init__(self) -> None:
        parent = _short_temp_folder()
        for stale in parent.glob(f"{PREFIX}*"):
            _remove_unlocked(stale)
        self.path, self._lock = _new_locked(parent)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _short_temp_folder() -> Path:
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= MAX_TEMP_PATH else "/tmp")


def _new_locked(parent: Path) -> tuple[Path, int]:
    """A new folder and its lock. Another driver may find the folder before it is locked, and remove it: try again."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError), _opened(folder) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder.stat()
            return folder, os.dup(descriptor)  # a lock is held until its last descriptor is closed


def _remove_unlocked(folder: Path) -> None:
    """Leaves folders that are locked, or another user's."""
    with contextlib.suppress(OSError), _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
