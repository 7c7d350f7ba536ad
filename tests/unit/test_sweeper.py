"""What a killed driver leaves of its private Ray is ended and removed. Who only reads there goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlpost.cluster import ray_folder, sweeper
from rlpost.cluster.ray_folder import RayFolder

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
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(ray_folder.__file__).parents[2])},
    )
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
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def sweepers(folder: Path) -> int:
    """The number of living sweepers of this folder."""
    found = 0
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found += words.read_bytes().split(b"\0")[-2:-1] == [str(folder).encode()]
    return found


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
        assert [*sweeper.writers_into(inside)] == [os.getpid()]
    with (inside / "log").open(), (beside / "log").open("w"):
        assert [*sweeper.writers_into(inside)] == []


def test_a_folder_that_is_gone_needs_no_sweeper(tmp_path: Path) -> None:
    sweeper.main(tmp_path / "gone")


def test_removing_a_folder_without_a_sweeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = RayFolder()
    folder.remove()
    assert not folder.path.exists()
