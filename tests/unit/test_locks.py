"""Two processes never work in one folder: who is first has it, the others get another, or are refused."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from rlpost.config.schema import Config
from rlpost.errors import OutputError
from rlpost.record import locks
from rlpost.record.run_dir import RunDir
from rlpost.tasks.session import run_folder
from tests.unit.contenders import PROCESSES, REFUSED, ROUNDS, Take, contend, take_comparison, take_run
from tests.unit.scripts import started

TAKES = pytest.mark.parametrize("take", [take_run, take_comparison])


@TAKES
def test_processes_that_start_together_get_folders_of_their_own(tmp_path: Path, take: Take) -> None:
    found = [path for each in contend(take, tmp_path, explicit=False) for path in each]
    assert len(set(found)) == len(found) == PROCESSES * ROUNDS
    assert REFUSED not in found


@TAKES
def test_of_processes_that_ask_for_one_folder_one_gets_it(tmp_path: Path, take: Take) -> None:
    for number, found in enumerate(contend(take, tmp_path, explicit=True)):
        assert sorted(found) == sorted([f"mine-{number}"] + [REFUSED] * (PROCESSES - 1))


HOLDER = """
import sys
from pathlib import Path
from rlpost.record import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = started(HOLDER, folder)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_second_resume_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "demo", 0, "seed: 0\n")
    before = {path.name for path in run_dir.path.iterdir()}
    first = holder(run_dir.path)
    try:
        with (
            pytest.raises(OutputError, match=rf"another process(?s:.)*pid {first.pid} on "),
            run_folder(Config(resume=str(run_dir.path))),
        ):
            pass
        assert {path.name for path in run_dir.path.iterdir()} == before | {locks.FILE}
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
    with run_folder(Config(resume=str(run_dir.path))) as resumed:  # the lock went with its process
        assert resumed == run_dir
        assert resumed.versions.is_file()


def test_a_new_run_holds_its_folder_as_long_as_it_works(tmp_path: Path) -> None:
    with (
        run_folder(Config(output_dir=str(tmp_path / "run"))) as run_dir,
        pytest.raises(OutputError, match=f"pid {os.getpid()} on "),
        locks.held(run_dir.path),
    ):
        pass
    with locks.held(run_dir.path):
        pass
