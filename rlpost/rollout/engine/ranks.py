"""The processes of a tensor-parallel engine end together, however one of them ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_LOST = 70  # exit status of an engine that lost a rank


def end_with_parent(_worker: Any) -> None:
    """In a rank: have Linux kill it when the thread that started it ends, killed or not.

    vLLM's ranks watch a pipe for that, but one that waits for another inside a kernel does not look.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def end_process() -> None:
    """In the engine's process, when a rank has died: end it too, so that the pool starts another engine.

    The engine may be waiting for that rank and could not raise.
    """
    print("A rank of this tensor-parallel engine died, so the engine ends.", file=sys.stderr, flush=True)
    os._exit(_LOST)
