"""Whether a run is at work, has finished, failed or was stopped, told from its folder alone: nothing is locked."""

from __future__ import annotations

import re
import socket
from enum import Enum
from pathlib import Path

import psutil

from rlpost.record import locks, run_error
from rlpost.record.run_dir import RunDir

_HOLDER = re.compile(r"pid (\d+) on (.+)")
_CLOCKS_S = 2.0  # by which the start of a process may seem later than the lock that it wrote


class State(Enum):
    """What a person is told of a run; the value is the word for it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # by Ctrl-C, SIGTERM or a kill: there is neither a summary nor an error
    UNKNOWN = "running or stopped"  # its process is on another machine, or not yet named


def state_of(run_dir: RunDir) -> State:
    """A folder's state. A process that works in it comes first: a resumed run still has the end of its last start."""
    alive = is_held(run_dir.path)
    if alive:
        return State.RUNNING
    if (run_dir.path / run_error.FILE).is_file():
        return State.FAILED
    if run_dir.summary.is_file():
        return State.FINISHED
    return State.UNKNOWN if alive is None else State.STOPPED


def is_held(folder: Path) -> bool | None:
    """Whether the process that the folder's lock names still lives; None where this machine cannot know.

    To try the lock would hold it for a moment, in which a run that starts is refused.
    """
    try:
        path = folder / locks.FILE
        found = _HOLDER.fullmatch(path.read_text(encoding="utf-8", errors="replace").strip())
        locked = path.stat().st_mtime
    except OSError:
        return None
    if found is None or found[2] != socket.gethostname():
        return None
    try:
        began: float = psutil.Process(int(found[1])).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None
    return began <= locked + _CLOCKS_S
