"""A run in a process of its own, started from Python (`rlpost.start`).

    start ─▶ checked here ─▶ python -m rlpost.api.background ─▶ dispatch ─▶ the record
             words and objects by a pipe                     console.log

The pipe stays open. When it closes, the process that started the run is gone, and the run ends itself as by SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlpost.cluster.processes import kill_tree
from rlpost.config.overrides import Word
from rlpost.envs import given
from rlpost.record import run_error
from rlpost.record.files import writing
from rlpost.record.folders import CONSOLE
from rlpost.run import Sigterm, dispatch, prepare

STOPPED = 143  # exit code after SIGTERM
_SIZE_BYTES = 8
_AGAIN_S = 30.0  # longer than a run takes to close its engines and Ray


class Process:
    """The process of a run. Raises OutputError where its console cannot be written."""

    def __init__(self, words: Sequence[Word], objects: Mapping[str, Any], folder: Path) -> None:
        from ray import cloudpickle

        message = cloudpickle.dumps((list(words), dict(objects), str(folder)))
        with writing(folder / CONSOLE), (folder / CONSOLE).open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlpost.api.background"],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                start_new_session=True,  # Ctrl-C comes to this process alone
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit code and console say why
            self._process.stdin.write(len(message).to_bytes(_SIZE_BYTES, "big") + message)
            self._process.stdin.flush()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None) -> int | None:
        """The exit code; None where it still runs after `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.exit_code

    def stop(self, timeout_s: float) -> None:
        """Ask it to end, and after `timeout_s` end it by force with all below it."""
        if self.exit_code is None:
            self._process.terminate()
        if self.wait(timeout_s) is None:
            kill_tree(self._process)


def main() -> int:
    """What runs in the process; returns its exit code. An error is in error.json, with or without a record."""
    signal.signal(signal.SIGTERM, Sigterm())
    words, objects, folder = _received(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_pipe, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        with given.handed_over(objects), run_error.kept(folder):
            dispatch(prepare(words))
    except KeyboardInterrupt:
        return STOPPED
    except Exception:  # kept, and to be read in full on the console
        traceback.print_exc()
        return 1
    return 0


def _received(pipe: BinaryIO) -> tuple[list[Word], dict[str, Any], Path]:
    """What `Process` wrote. The pipe comes from the process that started this one: nobody else can write to it."""
    size = int.from_bytes(pipe.read(_SIZE_BYTES), "big")
    words, objects, folder = pickle.loads(pipe.read(size))  # noqa: S301
    return words, objects, Path(folder)


def _end_with_the_pipe(pipe: BinaryIO) -> None:
    """End this process when the one that started it is gone.

    The signal is sent again, as Python drops an exception that comes up in a callback or a destructor.
    """
    pipe.read()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_AGAIN_S)


if __name__ == "__main__":
    sys.exit(main())
