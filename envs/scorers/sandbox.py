"""Runs foreign Python code in its own process, with limits. It guards against accidents, not against an adversary.

What it blocks: unlimited time and memory, unlimited output and files, new processes and threads, network connections,
signals to other processes and access to their memory. The environment's variables are not passed on, stdin is empty or
the test's, the working directory is a temporary folder that is removed, and installed packages cannot be imported: only
Python's standard library can.

What it does not block: the code runs as this user, may read every file that this user may read (on Linux also
`/proc/PID/environ`, which contains this process's variables), and may overwrite files that this user may write. It runs
in one process with its tests, so code that looks for them can claim to have passed. If the code may be malicious, run
all of rlpost in a container or a virtual machine.

It needs Linux on x86_64 or aarch64: elsewhere, or if the kernel accepts no filter of system calls, it raises OSError.
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
# Seconds for the interpreter to start on a busy machine; the child's own clock begins after that.
_START_S = 10.0


@dataclass(frozen=True)
class Limits:
    time_s: float = 5.0  # seconds of wall-clock time, and of processor time rounded up
    memory_mib: float = 512.0  # MiB of address space


@dataclass(frozen=True)
class Result:
    outcome: str
    detail: str  # the exception, or what ended the code
    output: str  # the first MiB of stdout


def run(code: str, limits: Limits, tests: str = "", stdin: str = "", may_exit: bool = False) -> Result:
    """Run `code`, then `tests` with its names. `may_exit`: sys.exit() in the code counts as a normal end.

    PASSED: both ended normally. FAILED: a test raised. CRASHED: the code raised, exited, or was ended by a signal.
    TIMEOUT, MEMORY: a limit was reached. Raises OSError if the limits cannot be set.
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
    """The exit status; None if the time was up. All processes that it started are dead afterwards."""
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
    """The child's own report line; None if it wrote none, or the line is not its own."""
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
