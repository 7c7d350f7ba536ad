"""The lock of a folder in which one process at a time works: a run's or a comparison's.

The lock ends when its process ends, for whatever reason. The file stays: if it were removed, two processes could lock
two files of the same name.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from rlpost.errors import OutputError
from rlpost.record.files import writing

FILE = ".lock"  # names the process that holds the lock, or held it last


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises OutputError, which names the process, if another one holds it."""
    path = folder / FILE
    lock: filelock.BaseFileLock = filelock.FileLock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise OutputError(
                f"{folder}\n  reason: another process works in this folder: {path.read_text() or 'it has just started'}"
                "\n  remedy: wait for it, or stop it"
            ) from None
    try:
        # On a disk without flock, filelock uses a soft lock, whose file names the holder.
        if not isinstance(lock, filelock.SoftFileLock):
            with writing(path):
                path.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()
