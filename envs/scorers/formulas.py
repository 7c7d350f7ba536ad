"""Tests whether an answer's formula equals a row's, by the package math-verify, an optional extra.

The package runs in a separate process, one for all environments of this process: SymPy may not terminate, and the
package's own limits need Python's main thread. A question that exceeds its time ends the process; the next one starts a
new process.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from rlpost.envs.errors import Refused

CORRECT, WRONG, NO_ANSWER, TIMEOUT = "CORRECT", "WRONG", "NO_ANSWER", "TIMEOUT"
_CHILD = Path(__file__).with_name("formulas_child.py")
_START_S = 120.0  # time to import SymPy on a busy machine


def refuse_missing() -> None:
    """Raise Refused if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise Refused(
            "score=math: the package math-verify, which compares formulas, is not installed",
            "pip install 'rlpost[math]', or score=number where answers are numbers",
        )


def compared(answer: str, right: str, time_s: float) -> tuple[float, str]:
    """1 and CORRECT, or 0 and WRONG, NO_ANSWER (the answer contains no formula) or TIMEOUT.

    Raises ValueError if `right` contains no formula, RuntimeError if the process does not start, or ends.
    """
    outcome = _PROCESS.asked(answer, right, time_s)
    if outcome == "NO_FORMULA":
        raise ValueError(f"math-verify finds no formula in the row's answer {right[:80]!r}")
    return float(outcome == CORRECT), outcome


class _Process:
    """The process of formulas_child.py: it reads and writes lines of JSON."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._lines = SimpleQueue[bytes]()

    def asked(self, answer: str, right: str, time_s: float) -> str:
        with self._lock:
            try:
                return self._asked(answer, right, time_s)
            # An environment's deadline may end the wait early: the late answer would then be read as the next one.
            except BaseException:
                self._end()
                raise

    def _asked(self, answer: str, right: str, time_s: float) -> str:
        child = self._started()
        assert child.stdin is not None, "it is a pipe"
        child.stdin.write(json.dumps([answer, right]).encode() + b"\n")
        child.stdin.flush()
        line = self._next(time_s)
        if line is None:
            self._end()
            return TIMEOUT
        return str(json.loads(self._whole(line)))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._lines = SimpleQueue()
            threading.Thread(target=_read, args=(self._child, self._lines), daemon=True).start()
            if (ready := self._next(_START_S)) is None:
                raise RuntimeError(f"score=math: math-verify did not start within {_START_S:g} s")
            self._whole(ready)
        return self._child

    def _next(self, time_s: float) -> bytes | None:
        with suppress(Empty):
            return self._lines.get(timeout=time_s)
        return None

    @staticmethod
    def _whole(line: bytes) -> bytes:
        if not line:
            raise RuntimeError(
                "score=math: the process that runs math-verify ended; its error stands in the log"
            )
        return line

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _read(child: subprocess.Popen[bytes], lines: SimpleQueue[bytes]) -> None:
    """Read every line that the process writes; add an empty line when it ends."""
    assert child.stdout is not None, "it is a pipe"
    for line in child.stdout:
        lines.put(line)
    lines.put(b"")


_PROCESS = _Process()
