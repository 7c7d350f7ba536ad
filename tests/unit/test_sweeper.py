"""What a killed driver leaves of its private Ray is ended and removed. Who only reads there goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlpost.cluster import sweeper
from tests.unit.scripts import started

PATIENCE_S = 30.0
DRIVER = """
import subprocess, sys, tempfile
from rlpost.cluster import ray_folder
tempfile.tempdir, ray_folder.MAX_TEMP_PATH = sys.argv[1], 1000
folder = ray_folder.RayFolder()
folder.sweep_if_killed()
log = folder.path / "log"
daemon = subprocess.Popen(["sleep", "600"], stdout=log.open("a"), start_new_session=True)
print(folder.path, daemon.pid, flush=True)
sys.stdin.read()
folder.remove()
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = started(DRIVER, tmp_path)
    yield process
    process.kill()
    process.communicate()


def told(driver: subprocess.Popen[str]) -> tuple[Path, int]:
    """The driver's folder, and the process that writes there."""
    assert driver.stdout is not None
    path, daemon = driver.stdout.readline().split()
    return Path(path), int(daemon)


def comes(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happened()


def lives(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def sweepers(folder: Path) -> int:
    """The number of living sweepers of this folder."""
    words = (process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"]))
    return sum(each[-1] == str(folder) for each in words)


def test_a_killed_drivers_processes_end_and_its_folder_goes(driver: subprocess.Popen[str]) -> None:
    folder, daemon = told(driver)
    reader = subprocess.Popen(["tail", "-f", str(folder / "log")], stdout=subprocess.DEVNULL)
    try:
        assert comes(lambda: sweepers(folder) == 1)
        driver.kill()
        assert comes(lambda: not folder.exists())
        assert comes(lambda: not lives(daemon))
        assert comes(lambda: sweepers(folder) == 0)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_a_driver_that_ends_by_itself_ends_its_sweeper_first(driver: subprocess.Popen[str]) -> None:
    folder, daemon = told(driver)
    driver.communicate("")
    assert driver.returncode == 0
    assert not folder.exists()
    assert sweepers(folder) == 0
    assert lives(daemon)  # ending Ray is the driver's own part
    os.kill(daemon, 9)


def test_only_what_writes_into_the_folder_is_found(tmp_path: Path) -> None:
    inside, beside = tmp_path / "in", tmp_path / "in-too"
    inside.mkdir()
    beside.mkdir()
    with (inside / "log").open("w"), (beside / "log").open("w"):
        assert [*sweeper.writers_into(inside)] == [psutil.Process()]
    with (inside / "log").open(), (beside / "log").open("w"):
        assert [*sweeper.writers_into(inside)] == []


def test_a_folder_that_is_gone_needs_no_sweeper(tmp_path: Path) -> None:
    sweeper.main(tmp_path / "gone")
