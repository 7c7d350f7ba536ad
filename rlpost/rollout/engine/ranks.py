"""The processes of a tensor-parallel engine end together, however one of them ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1
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


def end_process() -> None:
    """In the engine's process, when a rank has died: end it too, so that the pool starts another engine.

    The engine may be waiting for that rank and could not raise.
    """
    print("A rank of this tensor-parallel engine died, so the engine ends.", file=sys.stderr, flush=True)
    os._exit(_LOST)
