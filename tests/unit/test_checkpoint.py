"""Checkpoints: whole or not there, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlpost.errors import CheckpointError, OutputError
from rlpost.record import checkpoint, files
from rlpost.record.run_dir import RunDir
from rlpost.record.shares import Share, share_of

SETTINGS = {"algo": {"clip": 0.2, "kl": "reward"}, "model": "tiny"}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", "name", 0, "")


def learner(content: str) -> Callable[[Path], list[Share]]:
    def write(folder: Path) -> list[Share]:
        (folder / "shard").mkdir()
        (folder / "shard" / "weights.bin").write_text(content)
        (folder / "optimizer.bin").write_text(content * 2)
        return [share_of(folder, 0)]

    return write


def take(run_dir: RunDir, iteration: int) -> Path:
    return checkpoint.save(run_dir, iteration, learner(f"of {iteration}"), {"version": iteration}, SETTINGS)


def is_whole(found: checkpoint.Checkpoint, iteration: int) -> bool:
    weights = (found.path / "shard" / "weights.bin").read_text()
    optimizer = (found.path / "optimizer.bin").read_text()
    return (found.iteration, found.progress, weights, optimizer) == (
        iteration,
        {"version": iteration},
        f"of {iteration}",
        f"of {iteration}" * 2,
    )


def names(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.checkpoints.iterdir())


def test_the_newest_is_found_and_two_are_kept(run_dir: RunDir) -> None:
    for iteration in (9, 10, 100):
        assert take(run_dir, iteration).name == f"iteration-{iteration:06d}"
    assert names(run_dir) == ["iteration-000010", "iteration-000100"]
    assert is_whole(checkpoint.latest(run_dir, SETTINGS), 100)


def test_no_checkpoint_is_an_error(run_dir: RunDir) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint was taken"):
        checkpoint.latest(run_dir, SETTINGS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "progress.json").unlink(),
        lambda p: (p / "progress.json").write_text("{"),
        lambda p: (p / "progress.json").write_text("[]"),
        lambda p: (p / "progress.json").write_text(
            json.dumps({"iteration": 2, "settings": SETTINGS, "progress": {}, "ranks": [[]], "files": {}})
        ),
        lambda p: (p / "progress.json").write_text(  # a rank's file that nothing vouches for
            (p / "progress.json").read_text().replace('"ranks": [', '"ranks": [["shard/of_rank_1.bin"],')
        ),
        lambda p: (p / "optimizer.bin").unlink(),
        lambda p: (p / "shard" / "weights.bin").write_text("cut"),
        lambda p: (p / "shard" / "weights.bin").write_text("OF 2"),  # as long as before
    ],
)
def test_a_damaged_checkpoint_is_passed_over(run_dir: RunDir, damage: Callable[[Path], None]) -> None:
    take(run_dir, 1)
    damage(take(run_dir, 2))
    found = checkpoint.latest(run_dir, SETTINGS)
    assert is_whole(found, 1)
    assert [path.name for path in found.passed_over] == ["iteration-000002"]
    damage(run_dir.checkpoints / "iteration-000001")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole"):
        checkpoint.latest(run_dir, SETTINGS)


def test_a_damaged_one_does_not_count_as_kept(run_dir: RunDir) -> None:
    take(run_dir, 1)
    (take(run_dir, 2) / "optimizer.bin").unlink()
    take(run_dir, 3)
    assert names(run_dir) == ["iteration-000001", "iteration-000003"]


def test_other_settings_are_refused_by_name(run_dir: RunDir) -> None:
    take(run_dir, 1)
    changed = {"algo": {"clip": 0.3, "kl": "reward"}, "model": "tiny", "seed": 1}
    with pytest.raises(CheckpointError, match=r"algo\.clip=0\.3 \(was 0\.2\); seed=1 \(was null\)") as caught:
        checkpoint.latest(run_dir, changed)
    assert "model" not in str(caught.value)


def test_settings_are_compared_as_json(run_dir: RunDir) -> None:
    checkpoint.save(run_dir, 1, learner("x"), {}, {"betas": (0.9, 0.95)})
    assert checkpoint.latest(run_dir, {"betas": [0.9, 0.95]}).iteration == 1


@pytest.mark.parametrize("error", [RuntimeError("learner"), KeyboardInterrupt()])
def test_an_error_inside_write_leaves_the_one_before_and_no_rest(
    run_dir: RunDir, error: BaseException
) -> None:
    take(run_dir, 1)

    def write(folder: Path) -> list[Share]:
        (folder / "half").write_text("...")
        raise error

    with pytest.raises(type(error)):
        checkpoint.save(run_dir, 2, write, {}, SETTINGS)
    assert names(run_dir) == ["iteration-000001"]
    assert is_whole(checkpoint.latest(run_dir, SETTINGS), 1)


def test_a_learner_that_wrote_nothing_is_refused(run_dir: RunDir) -> None:
    take(run_dir, 1)
    with pytest.raises(CheckpointError, match=r"iteration-000002\n.*wrote nothing\n"):
        checkpoint.save(run_dir, 2, lambda folder: [], {}, SETTINGS)
    assert names(run_dir) == ["iteration-000001"]


def test_a_full_disk_is_an_output_error(run_dir: RunDir) -> None:
    take(run_dir, 1)

    def write(folder: Path) -> list[Share]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"iteration-000002\n(?s:.)*free space"):
        checkpoint.save(run_dir, 2, write, {}, SETTINGS)
    assert is_whole(checkpoint.latest(run_dir, SETTINGS), 1)


def test_taking_an_iteration_again_replaces_it(run_dir: RunDir) -> None:
    checkpoint.save(run_dir, 5, learner("first"), {}, SETTINGS)
    take(run_dir, 5)
    assert names(run_dir) == ["iteration-000005"]
    assert is_whole(checkpoint.latest(run_dir, SETTINGS), 5)


def test_the_mark_is_written_last_and_vouches_for_every_file(run_dir: RunDir) -> None:
    mark = json.loads((take(run_dir, 3) / "progress.json").read_text())
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in (("o", b"of 3of 3"), ("w", b"of 3"))}
    assert mark["files"] == {"optimizer.bin": [8, digests["o"]], "shard/weights.bin": [4, digests["w"]]}
    assert mark["ranks"] == [["optimizer.bin", "shard/weights.bin"]]


def test_a_mark_of_an_earlier_commit_vouches_for_its_files_too(run_dir: RunDir) -> None:
    mark = take(run_dir, 3) / "progress.json"
    told = json.loads(mark.read_text())
    del told["ranks"]
    mark.write_text(json.dumps(told))
    assert is_whole(checkpoint.latest(run_dir, SETTINGS), 3)


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")


def killed_at(step: int, action: Callable[[], object], where: Path) -> bool:
    """Run `action` in a child that dies, as by SIGKILL, before its step-th file operation. False: it lived."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(where) in str(args[0]):
            seen += 1
            if seen > step:
                os._exit(9)

    sys.addaudithook(hook)
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("newest", [3, 2])  # a new iteration, and the newest one taken again
def test_killed_at_any_file_operation_a_whole_checkpoint_is_there(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: int
) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)  # slow, and what a kill cannot undo
    take(run_dir, 1)
    take(run_dir, 2)
    step, lived = 0, False
    while not lived:
        copy = RunDir(tmp_path / f"run{step}")
        shutil.copytree(run_dir.path, copy.path)
        lived = not killed_at(step, lambda run=copy: take(run, newest), copy.path)
        found = checkpoint.latest(copy, SETTINGS)
        assert found.iteration in (2, newest)
        assert is_whole(found, found.iteration)
        take(copy, 4)  # the next run cleans up
        assert is_whole(checkpoint.latest(copy, SETTINGS), 4)
        assert not [name for name in names(copy) if name.startswith(".")]
        assert len(names(copy)) == 2
        step += 1
    assert step > 12
