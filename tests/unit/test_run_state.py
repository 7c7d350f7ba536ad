"""What a folder says of its run, told without a lock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlpost.errors import OutputError
from rlpost.record import locks, run_error
from rlpost.record.run_dir import RunDir
from rlpost.record.run_state import State, state_of


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", "demo", 0, "name: demo\n")


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(60)
    return process.pid


def test_a_process_that_holds_the_folder_is_seen_and_not_disturbed(run_dir: RunDir) -> None:
    with locks.held(run_dir.path):
        assert state_of(run_dir) is State.RUNNING
        run_dir.write_summary({})
        assert state_of(run_dir) is State.RUNNING


def test_the_states_of_a_folder_that_nobody_holds(run_dir: RunDir) -> None:
    assert state_of(run_dir) is State.UNKNOWN  # it has no lock yet
    (run_dir.path / locks.FILE).write_text(f"pid {gone()} on {socket.gethostname()}")
    assert state_of(run_dir) is State.STOPPED
    run_dir.write_summary({})
    assert state_of(run_dir) is State.FINISHED
    with pytest.raises(OutputError), run_error.kept(run_dir.path):
        raise OutputError("x")
    assert state_of(run_dir) is State.FAILED


def test_a_process_that_began_after_the_lock_is_another_one_of_its_number(run_dir: RunDir) -> None:
    lock = run_dir.path / locks.FILE
    lock.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
    assert state_of(run_dir) is State.RUNNING
    os.utime(lock, (1e9, 1e9))
    assert state_of(run_dir) is State.STOPPED


@pytest.mark.parametrize("said", ["", "pid 1 on another-machine", "pid x on y"])
def test_what_this_machine_cannot_know(run_dir: RunDir, said: str) -> None:
    (run_dir.path / locks.FILE).write_text(said)
    assert state_of(run_dir) is State.UNKNOWN
