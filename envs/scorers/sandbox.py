"""Foreign Python code in a process of its own, with limits. It guards against accidents, not against an adversary.

What it blocks: time and memory without end, output and files without end, new processes and threads, network
connections, signals to other processes and their memory. The environment's variables are not passed on, stdin is empty
or the test's, the working directory is a temporary folder that is removed, and packages that are installed cannot be
imported: only Python's standard library can.

What it does not block: the code runs as this user and may read every file that this user may read (on Linux also
`/proc/PID/environ`, where this process's variables stand), and overwrite those that it may write. It runs in one
process with its tests, so code that looks for them can claim to have passed. For code of people who mean harm, run the
whole of rlpost in a container or a virtual machine.

Linux on x86_64 or aarch64: elsewhere it raises OSError, as it does where the kernel takes no filter of system calls.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PASSED, FAILED, TIMEOUT, MEMORY, CRASHED = "PASSED", "FAILED", "TIMEOUT", "MEMORY", "CRASHED"
_CHILD = Path(__file__).with_name("sandbox_child.py")
_MIB = 2**20
_MOST_READ = _MIB
_START_S = (
    10.0  # for the interpreter to start where the machine is busy; the child's own clock begins after that
)


@dataclass(frozen=True)
class Limits:
    time_s: float = 5.0  # of the wall clock, and of the processor rounded up
    memory_mib: float = 512.0  # of address space


@dataclass(frozen=True)
class Result:
    outcome: str
    detail: str  # what was raised, or what ended it
    output: str  # what went to stdout, its first MiB


def run(code: str, limits: Limits, tests: str = "", stdin: str = "", may_exit: bool = False) -> Result:
    """Run `code`, then `tests` with its names. `may_exit`: sys.exit() of the code is its good end.

    PASSED: both came to their end. FAILED: a test raised. CRASHED: the code raised, exited, or was ended by a signal.
    TIMEOUT, MEMORY: a limit was reached. Raises OSError where the limits cannot be set.
    """
    job = {
        "token": secrets.token_hex(8),
        "code": code,
        "tests": tests,
        "stdin": stdin,
        "may_exit": may_exit,
        "seconds": limits.time_s,
        "memory": int(limits.memory_mib * _MIB),
    }
    with (
        tempfile.TemporaryDirectory(prefix="rlpost-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as report,
    ):
        status = _finished(job, Path(folder), output, report, limits.time_s)
        return _result(_reported(report, str(job["token"])), status, _read(output))


def _finished(
    job: dict[str, object], folder: Path, output: BinaryIO, report: BinaryIO, time_s: float
) -> int | None:
    """The exit status; None where time was up. Whatever it has started is dead afterwards."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD), str(report.fileno())],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)},
        pass_fds=[report.fileno()],
        start_new_session=True,
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            child.communicate(json.dumps(job).encode("utf-8", "backslashreplace"), timeout=time_s + _START_S)
            return child.returncode
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _reported(report: BinaryIO, token: str) -> dict[str, str] | None:
    """The child's own line; None where it wrote none, or what stands there is not its own."""
    try:
        found = json.loads(_read(report))
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("token") == token else None


def _result(reported: dict[str, str] | None, status: int | None, output: str) -> Result:
    if reported is not None:
        if reported["outcome"] == "UNAVAILABLE":
            raise OSError(f"code cannot be run within limits here: {reported['detail']}")
        return Result(reported["outcome"], reported["detail"], output)
    if status is None or -status in (signal.SIGALRM, signal.SIGXCPU):
        return Result(TIMEOUT, "the time limit", output)
    return Result(CRASHED, signal.Signals(-status).name if status < 0 else f"exit status {status}", output)


def _read(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(_MOST_READ).decode("utf-8", "replace")
