"""Checkpoints of ranks that see the run's folder or do not. Real ranks: tests/integration/test_learner.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rlpost.cluster import actor_calls
from rlpost.cluster.placement import Placement, Plan
from rlpost.config.schema import Config
from rlpost.errors import CheckpointError
from rlpost.learner import checkpoint_folder
from rlpost.learner.actor import LearnerActor
from rlpost.learner.group import LearnerGroup
from rlpost.record.shares import faults, names_in

SHARED, OWN = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


class Learner:
    """Writes what a rank of ZeRO 1 writes, and notes what it reads."""

    def __init__(self, rank: int) -> None:
        self.rendezvous, self.loaded = SimpleNamespace(rank=rank), dict[str, bytes]()
        self.idle = False

    def save(self, folder: Path) -> None:
        names = [OWN.format(self.rendezvous.rank)] * (not self.idle)
        for name in [*names, SHARED] if self.rendezvous.rank == 0 else names:
            (folder / "learner").mkdir(exist_ok=True)
            (folder / "learner" / name).write_bytes(f"{name}|".encode() * 20)
        if self.rendezvous.rank == 0:
            (folder / "empty").touch()

    def load(self, folder: Path) -> None:
        self.loaded = {name: (folder / name).read_bytes() for name in names_in(folder)}

    def end_turn(self) -> None:
        pass


class Local(LearnerActor):
    """A rank in this process. `sees`: the folder that it sees at the path of the run's folder."""

    def __init__(self, rank: int, sees: Callable[[Path], Path]) -> None:
        self.learner, self.sees = Learner(rank), sees  # type: ignore[assignment]

    def find(self, folder: Path, sign: checkpoint_folder.Sign) -> bool:
        return super().find(self.sees(folder), sign)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        remote = name in ("find", "save", "load", "leave", "read", "append")
        return Remote(found) if remote else found


class Remote:
    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = self.method = method

    def __call__(self, *args: Any) -> Any:
        return self.method(*args)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LearnerGroup:
    """Two ranks of ZeRO 1; the second sees an empty folder at every path, as on a node with a disk of its own."""
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(actor_calls, "get", lambda answer, timeout_s, who: answer)
    monkeypatch.setattr(checkpoint_folder, "CHUNK", 64)
    made, cfg = LearnerGroup.__new__(LearnerGroup), Config()
    cfg.learner.workers, cfg.learner.zero_stage = 2, 1
    made.cfg, made.broken, made._placement = cfg, None, Placement(Plan.of(cfg))
    made.workers = [Local(0, lambda folder: folder), Local(1, lambda folder: tmp_path / "another disk")]
    monkeypatch.setattr(made, "_answers", lambda answers, what, timeout_s: answers)
    return made


def folders_of_nodes() -> set[Path]:
    from rlpost.cluster.ray_folder import PREFIX, _short_temp_folder

    return set(_short_temp_folder().glob(f"{PREFIX}*"))


def test_the_files_of_a_rank_that_does_not_see_the_folder_come_to_it_and_go_back(
    group: LearnerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # ranks work in other folders, so a relative path is no use to them
    before, folder = folders_of_nodes(), Path("run/checkpoint")
    shares = group.save(folder)
    assert [sorted(share) for share in shares] == [
        ["empty", f"learner/{SHARED}", f"learner/{OWN.format(0)}"],
        [f"learner/{OWN.format(1)}"],
    ]
    assert names_in(folder) == sorted(name for share in shares for name in share)
    assert not faults(folder, shares)
    group.load(folder)
    files = {name: (folder / name).read_bytes() for name in names_in(folder)}
    first, second = (worker.learner.loaded for worker in group.workers)
    assert first == files
    assert second == {name: data for name, data in files.items() if name != f"learner/{OWN.format(0)}"}
    assert folders_of_nodes() <= before, "nothing is left on the node"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_wrote_nothing_is_named(group: LearnerGroup, rank: int, tmp_path: Path) -> None:
    group.workers[rank].learner.idle = True
    with pytest.raises(CheckpointError, match=rf"of 2 learner ranks, it lacks the files of rank {rank}\n"):
        group.save(tmp_path / "checkpoint")


def test_a_checkpoint_without_a_ranks_share_is_not_loaded(group: LearnerGroup, tmp_path: Path) -> None:
    group.save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "learner" / OWN.format(1)).unlink()
    with pytest.raises(CheckpointError, match="lacks the files of rank 1\n"):
        group.load(tmp_path / "checkpoint")


def test_a_file_that_ends_early_on_its_node_is_an_error(
    group: LearnerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_folder.CheckpointFolder, "read", lambda self, name, offset: b"")
    with pytest.raises(CheckpointError, match=r"of learner rank 1 ended after 0 of \d+ bytes"):
        group.save(tmp_path / "checkpoint")


def test_a_full_disk_of_a_node_is_told_with_the_node(
    group: LearnerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_folder, "this_node", lambda: "node b, 10.0.0.2")
    monkeypatch.setattr(group.workers[1].learner, "save", full)
    with pytest.raises(CheckpointError, match=r"on node b, 10\.0\.0\.2\n  reason: No space left"):
        group.save(tmp_path / "checkpoint")
    group.workers[1].leave()


def test_a_whole_checkpoint_is_known_by_its_mark_and_only_read(tmp_path: Path) -> None:
    (tmp_path / checkpoint_folder.MARK).write_text("hashes of all its files")
    before = tmp_path.stat().st_mtime_ns
    with checkpoint_folder.signed(tmp_path) as sign:
        assert checkpoint_folder.CheckpointFolder(tmp_path, sign).is_the_runs
    assert tmp_path.stat().st_mtime_ns == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / checkpoint_folder.MARK).write_text("hashes of another checkpoint's files")
    elsewhere = checkpoint_folder.CheckpointFolder(tmp_path / "other", sign)
    assert not elsewhere.is_the_runs, "a node may have a checkpoint of its own at the same path"
    elsewhere.close()
