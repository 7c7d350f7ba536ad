"""Ends what a killed driver leaves of its private Ray. Run as a script, with the folder of that Ray as its argument.

The driver holds a lock on the folder (rlpost/cluster/ray_folder.py), which ends when the driver ends for any reason. A
driver that ends by itself ends this process first. So once the lock is free, this process kills every process that has
a file of the folder open for writing (each process of Ray writes its log there), and removes the folder.

It waits as long as the run lasts, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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
            with contextlib.suppress(OSError):  # it has ended
                os.kill(process, signal.SIGKILL)
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def writers_into(folder: Path) -> Iterator[int]:
    """The processes that have a file of the folder open for writing. Those of other users cannot be seen."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _writes_into(entry, f"{folder}/"):
            yield int(entry.name)


def _writes_into(process: Path, folder: str) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                if os.readlink(link).startswith(folder) and _for_writing(process / "fdinfo" / link.name):
                    return True
    return False


def _for_writing(info: Path) -> bool:
    flags = next(line for line in info.read_text().splitlines() if line.startswith("flags:"))
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY


if __name__ == "__main__":
    main(Path(sys.argv[1]))
