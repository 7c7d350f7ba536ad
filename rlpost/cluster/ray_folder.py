"""The folder of a private Ray, which is removed at the latest by the next run on this machine.

Nobody but its user can look into it: Ray opens the folders it is given to everybody (mode 0777), sockets and logs below
them included, so it gets one inside of ours, which keeps mode 0700. (A umask would close more than that: Ray's
processes inherit it, and a learner's checkpoints would be hidden from the group that shares the run's folder.)

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
INNER = "r"
MAX_TEMP_PATH = (
    20  # Unix socket paths end at 107 bytes, of which Ray's session takes 65 and our two folders 22
)


class RayFolder:
    """A new, locked folder with a short path. Making one removes what killed drivers left."""

    def __init__(self) -> None:
        parent = _short_temp_folder()
        for stale in parent.glob(f"{PREFIX}*"):
            _remove_unlocked(stale)
        self.path, self._lock = _new_locked(parent)

    @property
    def for_ray(self) -> Path:
        """What Ray is told; Ray makes it, and may open it to everybody."""
        return self.path / INNER

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
