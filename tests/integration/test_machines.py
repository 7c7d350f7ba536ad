"""The machines of tests/integration/machines.py: apart while they last, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.integration.machines import ROOT, obstacle

OBSTACLE = obstacle()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no two machines here: {OBSTACLE}"),
]


def test_machines_are_apart_and_go_with_the_process_that_made_them() -> None:
    script = """
import os, signal
from tests.integration.machines import two_machines

with two_machines() as (head, other):
    head.path("/tmp/note").write_text("of the head")
    assert head.call("cat", "/tmp/note") == "of the head"
    assert other.call("ls", "/tmp") == "hosts\\n"
    assert other.call("hostname") == "node-b\\n"
    assert not other.path(os.getcwd() + "/rlpost").exists()
    for machine in (head, other):
        for _ in range(2):
            started = machine.command("sleep", "600")
            os.posix_spawn("/usr/bin/" + started[0], started, os.environ)
        while len(machine.processes("sleep")) < 2:
            pass
    print(*(process.pid for machine in (head, other) for process in machine.processes()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # As in a process that has imported vLLM. The second machine cannot load the library, and must not be asked to.
    environment = {**os.environ, "LD_PRELOAD": str(ROOT / "library.so")}
    killed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pids = [int(pid) for pid in killed.stdout.split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
