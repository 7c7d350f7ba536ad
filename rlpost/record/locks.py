"""The lock of a folder that one process at a time works in: a run's, or a comparison's.

It ends with the process that holds it, however that ends. The file stays: removing it would let two processes lock
two files of one name.
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

FILE = ".lock"  # says who holds it, or held it last


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises OutputError, which names the process, where another one holds it."""
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
        # On a disk without flock filelock turns it into a soft lock, whose file says who holds it.
        if not isinstance(lock, filelock.SoftFileLock):
            with writing(path):
                path.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()
