"""The processes of a tensor-parallel engine end together, however one of them ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
# Python's shared memory and semaphores, and the memory in which ranks on a CPU add up their results.
_OF_RANKS = re.compile(r"(psm_|sem\.mp-)\w+|\S+-cpushm_\d+")
_LOST = 70  # exit status of an engine that lost a rank


class RankMain:
    """The main function of a rank's process, which Linux kills when the thread that started it ends, killed or not.

    vLLM's ranks watch a pipe for that, but not while they start, nor while one waits for another inside a kernel. A
    spawned process unpickles its main function first, so it is bound to its parent before it imports anything heavy.
    """

    def __init__(self, main: Callable[..., None] | None = None):
        self._main = main

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        assert self._main is not None
        self._main(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bound_to, (os.getpid(),), {"_main": self._main}


def _bound_to(parent: int) -> RankMain:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before
        os._exit(_LOST)
    return RankMain()


def shared_memory() -> set[Path]:
    """The names of shared memory and semaphores that this process has mapped: vLLM's queues, and those of its ranks.

    By inode, since Linux shows a semaphore in the process that made it under a name that it no longer has.
    """
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    mapped = {int(line[4]) for line in lines if len(line) > 5 and line[5].startswith("/dev/shm/")}
    found = set()
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of another process, and gone meanwhile
            if _OF_RANKS.fullmatch(path.name) and path.stat().st_ino in mapped:
                found.add(path)
    return found


def forget(names: set[Path]) -> None:
    """Remove the names of shared memory that all ranks have mapped, so that it is freed however they end.

    vLLM removes them when an engine ends by itself, and Python's tracker after a kill, but Ray kills the tracker too.
    """
    for name in names:
        name.unlink(missing_ok=True)


def end_process() -> None:
    """In the engine's process, when a rank has died: end it too, so that the pool starts another engine.

    The engine may be waiting for that rank and could not raise.
    """
    print("A rank of this tensor-parallel engine died, so the engine ends.", file=sys.stderr, flush=True)
    os._exit(_LOST)
