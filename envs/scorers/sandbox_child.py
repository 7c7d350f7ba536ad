"""The process in which foreign code runs: it gives up unneeded rights, runs the code, and reports.

It is started as `python -I -S sandbox_child.py REPORT_FD`, with a job as JSON on stdin; see sandbox.py. It imports
nothing of rlpost. The report is one line of JSON: the job's token, an outcome and a detail.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any, NoReturn

# System calls by architecture: new processes and threads, the network, signals, other processes' memory.
_DENIED = {
    "x86_64": (
        0xC000003E,
        # clone fork vfork clone3 | socket connect | kill tkill tgkill pidfd_open pidfd_send_signal
        # rt_sigqueueinfo rt_tgsigqueueinfo | ptrace process_vm_readv process_vm_writev pidfd_getfd | io_uring_setup
        # prlimit64
        (56, 57, 58, 435, 41, 42, 62, 200, 234, 434, 424, 129, 297, 101, 310, 311, 438, 425, 302),
    ),
    "aarch64": (
        0xC00000B7,
        (220, 435, 198, 203, 129, 130, 131, 434, 424, 138, 240, 117, 270, 271, 438, 425, 261),
    ),
}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_FILTER, _SIGKILL, _EPERM = 2, 9, 1
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # opcodes of BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
_FOREIGN_ABI = 0x40000000  # set in x32's system calls

_MIB = 2**20
_MOST_OUTPUT = _MIB  # bytes of one file, including stdout
_MOST_FILES = 64


def _give_up(seconds: float, memory: int) -> None:
    """Set limits first, then block system calls. Raises OSError if the kernel accepts no filter."""
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, _MOST_OUTPUT),
        (resource.RLIMIT_NOFILE, _MOST_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    _prctl(libc, _PR_SET_PDEATHSIG, _SIGKILL)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    program = _filter()
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    pointed_to = ctypes.create_string_buffer(head, len(head))
    _prctl(libc, _PR_SET_SECCOMP, _FILTER, ctypes.addressof(pointed_to))


def _prctl(libc: ctypes.CDLL, option: int, first: int, second: int = 0) -> None:
    if libc.prctl(option, first, second, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _filter() -> bytes:
    """A BPF program over (number of the system call, architecture): denied calls fail with EPERM."""
    machine = platform.machine()
    if machine not in _DENIED:
        raise OSError(f"no filter of system calls for {machine}: there are {', '.join(_DENIED)}")
    architecture, denied = _DENIED[machine]

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    checks = [
        step(_LOAD, 4),
        step(_EQUAL, architecture, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),
        step(_AT_LEAST, _FOREIGN_ABI, len(denied) + 1, 0),
    ]
    # Each jump counts the steps that it skips: the other checks, and the step that allows the call.
    checks += [step(_EQUAL, number, len(denied) - i, 0) for i, number in enumerate(denied)]
    return b"".join([*checks, step(_RETURN, _ALLOW), step(_RETURN, _REFUSE)])


def _run(job: dict[str, Any]) -> tuple[str, str]:
    """Run the code, and the tests after it with its names; return outcome and detail."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.stdin = io.StringIO(job["stdin"])
    for part, wrong in (("code", "CRASHED"), ("tests", "FAILED")):
        try:
            exec(compile(job[part], f"<{part}>", "exec"), names)
        except MemoryError:
            names.clear()
            return "MEMORY", "MemoryError"
        except AssertionError as error:
            return "FAILED" if part == "tests" else "CRASHED", _told(error)
        except SystemExit as error:
            if part == "code" and job["may_exit"] and error.code in (None, 0):
                continue
            return "CRASHED", _told(error)
        except BaseException as error:
            return wrong if isinstance(error, Exception) else "CRASHED", _told(error)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    return "PASSED", ""


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:  # the code's own exception; converting it to text may raise anything
        return type(error).__name__


def main() -> NoReturn:
    report, job = int(sys.argv[1]), json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    try:
        _give_up(job.pop("seconds"), job.pop("memory"))
        outcome, detail = _run(job)
    except OSError as error:
        outcome, detail = "UNAVAILABLE", str(error)
    line = json.dumps({"token": job["token"], "outcome": outcome, "detail": detail})
    os.write(report, line.encode())
    os._exit(0)  # runs neither atexit handlers nor the code's threads


if __name__ == "__main__":
    main()
