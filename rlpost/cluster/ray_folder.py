"""The folder of a private Ray, or of a checkpoint that a learner rank holds for the driver (learner/checkpoint_folder).
If its process does not remove it, the sweeper of a private Ray does, or the next run on this machine.

Only its user can read it. Ray makes the folders it is given, with sockets and logs, open to everybody (mode 0777), so
Ray gets a folder inside ours, which keeps mode 0700. (A umask would be too strict: Ray's processes inherit it, and a
learner's checkpoints would be hidden from the group that shares the run's folder.)

The driver holds a lock on the folder. The lock ends when the driver ends for any reason (SIGKILL, a crash), and other
containers see it too: a folder that can be locked has no driver any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlpost.cluster import sweeper

PREFIX = "rlpost-run-"
INNER = "r"
# Unix socket paths end at 107 bytes, of which Ray's session takes 65 and our two folders 22.
MAX_TEMP_PATH = 20


class RayFolder:
    """A new, locked folder with a short path. Creating one removes the folders of killed drivers."""

    def __init__(self) -> None:
        parent = _short_temp_folder()
        for stale in parent.glob(f"{PREFIX}*"):
            _remove_unlocked(stale)
        self.path, self._lock = _new_locked(parent)
        self._sweeper: subprocess.Popen[bytes] | None = None

    @property
    def for_ray(self) -> Path:
        """The folder for Ray, which creates it and may open it to everybody."""
        return self.path / INNER

    def sweep_if_killed(self) -> None:
        """Start the process that ends Ray and removes the folder if this process is killed (sweeper.py)."""
        self._sweeper = subprocess.Popen(
            [sys.executable, "-I", sweeper.__file__, str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the driver
        )

    def remove(self) -> None:
        if self._sweeper is not None:
            self._sweeper.kill()
            self._sweeper.wait()
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _short_temp_folder() -> Path:
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= MAX_TEMP_PATH else "/tmp")


def _new_locked(parent: Path) -> tuple[Path, int]:
    """A new folder and its lock. Tries again if another driver found the folder before the lock and removed it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError), _opened(folder) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder.stat()
            return folder, os.dup(descriptor)  # a lock is held until its last descriptor is closed


def _remove_unlocked(folder: Path) -> None:
    """Remove the folders without a lock. Locked folders and those of other users stay."""
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
