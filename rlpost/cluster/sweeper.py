"""Ends what a killed driver leaves of its private Ray. Run as a script, with the folder of that Ray as its argument.

The driver holds a lock on the folder (rlpost/cluster/ray_folder.py), which ends when the driver ends for any reason. A
driver that ends by itself ends this process first. So once the lock is free, this process kills every process that has
a file of the folder open for writing (each process of Ray writes its log there), and removes the folder.

It waits as long as the run lasts, so it imports nothing of rlpost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

DEADLINE_S = 20.0  # a process that waits for a disk may not end before
POLL_S = 0.1


def main(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # the driver was killed, and the next run has removed it
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Kill what writes into the folder, also what one of these processes starts meanwhile, and remove the folder."""
    deadline = time.monotonic() + DEADLINE_S
    while (writers := [*writers_into(folder)]) and time.monotonic() < deadline:
        for process in writers:
            with contextlib.suppress(psutil.Error):  # it has ended
                process.kill()
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def writers_into(folder: Path) -> Iterator[psutil.Process]:
    """The processes that have a file of the folder open for writing. Those of other users cannot be seen."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
            if any(file.mode != "r" and folder in Path(file.path).parents for file in process.open_files()):
                yield process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
