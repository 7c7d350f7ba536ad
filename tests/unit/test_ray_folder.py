"""A run's folder for Ray: kept while its driver lives, removed by the next run when it was killed."""

from __future__ import annotations

import fcntl
import signal
import stat
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlpost.cluster import ray_folder
from rlpost.cluster.ray_folder import RayFolder
from tests.unit.scripts import started


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, here with a path that is too long for Ray's sockets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray_folder, "MAX_TEMP_PATH", 1000)
    return tmp_path


def test_a_folder_is_new_and_removed_with_all_it_holds(temp: Path) -> None:
    folder = RayFolder()
    assert folder.path.parent == temp
    (folder.path / "session").mkdir()
    (folder.path / "session" / "log").write_text("x")
    folder.remove()
    assert list(temp.iterdir()) == []


def test_nobody_else_reaches_what_ray_makes(temp: Path) -> None:
    """By Ray's own function, which opens every folder of a session, and the one it is told, to everybody."""
    from ray._common.utils import try_to_create_directory

    folder = RayFolder()
    for made in (folder.for_ray, folder.for_ray / "session", folder.for_ray / "session" / "sockets"):
        try_to_create_directory(str(made))
    assert folder.for_ray.stat().st_mode & 0o077  # what makes the outer folder necessary
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert list(temp.iterdir()) == []


def test_a_socket_of_rays_session_fits_its_path() -> None:
    longest = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    assert ray_folder.MAX_TEMP_PATH + len(f"/{ray_folder.PREFIX}12345678/{ray_folder.INNER}{longest}") <= 107


def test_a_living_driver_keeps_its_folder(temp: Path) -> None:
    first, second = RayFolder(), RayFolder()
    assert {first.path, second.path} == set(temp.iterdir())
    second.remove()
    first.remove()


DRIVER = """
import os, sys, tempfile
from rlpost.cluster import ray_folder
tempfile.tempdir, ray_folder.MAX_TEMP_PATH = sys.argv[1], 1000
folder = ray_folder.RayFolder()
(folder.path / "log").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_driver_goes_with_the_next_start(temp: Path) -> None:
    driver = started(DRIVER, temp)
    assert driver.stdout is not None
    left = Path(driver.stdout.readline().strip())
    RayFolder().remove()
    assert (left / "log").exists()  # its driver lives
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=30)
    assert (left / "log").exists()
    RayFolder().remove()
    assert not left.exists()


def test_what_others_put_there_stays(temp: Path) -> None:
    other = temp / "other"
    other.mkdir()
    (temp / f"{ray_folder.PREFIX}file").write_text("x")
    (temp / f"{ray_folder.PREFIX}link").symlink_to(other)
    before = sorted(temp.iterdir())
    RayFolder().remove()
    assert sorted(temp.iterdir()) == before


@pytest.mark.parametrize(("module", "name"), [(tempfile, "mkdtemp"), (fcntl, "flock")])
def test_a_folder_that_is_lost_before_it_is_locked_is_replaced(
    temp: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    """Another driver removes it once it is there, and once it is opened."""
    original, calls = getattr(module, name), []

    def lose_the_first(*args: Any, **options: Any) -> Any:
        done = original(*args, **options)
        calls.append(done)
        if len(calls) == 1:
            (lost,) = temp.iterdir()
            lost.rmdir()
        return done

    monkeypatch.setattr(module, name, lose_the_first)
    folder = RayFolder()
    assert len(calls) == 2
    assert list(temp.iterdir()) == [folder.path]
    folder.remove()


def test_a_path_too_long_for_rays_sockets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = RayFolder()
    assert folder.path.parent == Path("/tmp")
    folder.remove()
