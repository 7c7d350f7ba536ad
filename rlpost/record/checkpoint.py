"""Checkpoints that appear in one step, complete or not at all.

    checkpoints/.tmp-iteration-000012   being written: the learner's files, then progress.json as the completion mark
    checkpoints/iteration-000012        renamed only when all of it is on disk
    checkpoints/.old-iteration-000012   an earlier one of the same iteration, until its successor is in place

progress.json names every file with its size and SHA-256, and the files of each rank, so a truncated, partly copied or
damaged checkpoint is recognised, and so is one that lacks a rank's share (rlpost.record.shares).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.config.former_words import translated
from rlpost.errors import CheckpointError
from rlpost.record.files import publish_folder, writing
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.record.shares import Share, digest, faults, is_there

MARK = "progress.json"
KEPT = 2
_FINAL = re.compile(r"(?P<old>\.old-)?iteration-(?P<iteration>\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    path: Path  # the folder with the learner's files and progress.json
    iteration: int  # iterations finished when it was saved
    progress: dict[str, Any]  # as given to `save`
    passed_over: tuple[Path, ...] = ()  # newer checkpoints, which are incomplete


def save(
    run_dir: RunDir,
    iteration: int,
    write: Callable[[Path], Sequence[Share]],
    progress: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Save a checkpoint. If saving fails, the previous one stays complete. Keeps the newest two.

    Args:
        write: fills the folder it is given, and returns the share of every rank when all files are closed.
        progress: the state that the loop needs to continue, as JSON.
        settings: the part of the configuration that determines the training, as JSON; `latest` compares it.

    Raises:
        CheckpointError: `write` wrote no file, or a file is not there as its rank wrote it.
        OutputError: the disk is full or not writable.
        Any error of `write`; the unfinished folder is removed.
    """
    folder = run_dir.checkpoints / iteration_name(iteration)

    def fill(fresh: Path) -> None:
        shares = write(fresh)
        _finish(fresh, shares, {"iteration": iteration, "settings": settings, "progress": progress})

    with writing(folder):
        _sweep(run_dir.checkpoints)
    publish_folder(folder, fill)
    with writing(folder):
        _prune(run_dir.checkpoints)
    return folder


def latest(run_dir: RunDir, settings: Mapping[str, Any]) -> Checkpoint:
    """The newest complete checkpoint, with every byte verified.

    Raises CheckpointError if none is complete, or if it was saved with other `settings`; the message names them.
    """
    candidates = _candidates(run_dir.checkpoints)
    for i, path in enumerate(candidates):
        mark = _whole(path, bytes_too=True)
        if mark is not None:
            _check_settings(path, mark["settings"], translated(json.loads(json.dumps(settings))))
            return Checkpoint(path, mark["iteration"], mark["progress"], tuple(candidates[:i]))
    reason = f"none of {len(candidates)} checkpoints is whole" if candidates else "no checkpoint was taken"
    raise CheckpointError(f"{run_dir.checkpoints}\n  reason: {reason}\n  remedy: start the run anew")


def before(run_dir: RunDir, iteration: int, settings: Mapping[str, Any]) -> Checkpoint:
    """The newest complete checkpoint with at most `iteration` iterations finished, with every byte verified.

    Raises CheckpointError if there is none, naming the first iteration that has one, or if it was saved with other
    `settings`.
    """
    candidates = _candidates(run_dir.checkpoints)
    whole = [(path, mark) for path in candidates if (mark := _whole(path, bytes_too=True)) is not None]
    for path, mark in whole:
        if mark["iteration"] <= iteration:
            _check_settings(path, mark["settings"], translated(json.loads(json.dumps(settings))))
            return Checkpoint(path, mark["iteration"], mark["progress"])
    first = min((mark["iteration"] for _, mark in whole), default=None)
    kept = "no checkpoint is whole" if first is None else f"the oldest whole one has {first} iterations"
    ways = "start the run anew" if first is None else f"name an iteration from {first} on"
    raise CheckpointError(
        f"{run_dir.checkpoints}\n  reason: there is no checkpoint from before iteration {iteration}: {kept}\n"
        f"  remedy: {ways}; a run keeps the newest {KEPT} of those that it takes every"
        " tracking.checkpoint_every iterations"
    )


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a complete checkpoint, with every byte verified."""
    return _whole(folder, bytes_too=True) is not None


def exists(run_dir: RunDir) -> bool:
    """Whether there is a complete checkpoint, with any settings."""
    return any(_whole(path) is not None for path in _candidates(run_dir.checkpoints))


def _finish(folder: Path, shares: Sequence[Share], mark: Mapping[str, Any]) -> None:
    """Write the completion mark, which lists the files of every rank.

    Raises CheckpointError if there are none, or if a file in `folder` is not as its rank wrote it.
    """
    files = {name: entry for share in shares for name, entry in share.items()}
    wrong = faults(folder, shares) if files else ["the learner wrote nothing"]
    if wrong:
        raise CheckpointError(
            f"{folder}\n  reason: {'; '.join(wrong)}\n"
            "  remedy: check the disk of output_dir; the run goes on from the checkpoint before with resume="
        )
    ranks = [sorted(share) for share in shares]
    text = json.dumps({**mark, "ranks": ranks, "files": files}, indent=2, allow_nan=False) + "\n"
    (folder / MARK).write_text(text)


def _sweep(checkpoints: Path) -> None:
    """Remove unfinished folders left by a crash."""
    for path in checkpoints.glob(".tmp-*"):
        shutil.rmtree(path)


def _prune(checkpoints: Path) -> None:
    """Remove all but the newest KEPT complete checkpoints, and the replaced predecessors."""
    whole = [path for path in _candidates(checkpoints) if not _is_old(path) and _whole(path) is not None]
    for path in _candidates(checkpoints):
        if path not in whole[:KEPT]:
            shutil.rmtree(path)


def _candidates(checkpoints: Path) -> list[Path]:
    """Finished folders, newest first. A replaced one comes after its successor."""
    if not checkpoints.is_dir():
        return []
    matches = [(match, path) for path in checkpoints.iterdir() if (match := _FINAL.fullmatch(path.name))]
    order = sorted(
        matches, key=lambda pair: (int(pair[0]["iteration"]), pair[0]["old"] is None), reverse=True
    )
    return [path for _, path in order]


def _whole(path: Path, bytes_too: bool = False) -> dict[str, Any] | None:
    """The mark of a checkpoint whose files all have their sizes, and with `bytes_too` their hashes; None otherwise."""
    try:
        mark = json.loads((path / MARK).read_text())
        # Marks of earlier commits do not list ranks; the learner looks for each rank's files when it loads.
        listed = {name for names in mark.get("ranks", [mark["files"]]) for name in names}
        files = [(path / name, size, sha256) for name, (size, sha256) in mark["files"].items()]
        there = (
            files and listed == set(mark["files"]) and all(is_there(file, size) for file, size, _ in files)
        )
        if there and not (bytes_too and any(digest(file) != sha256 for file, _, sha256 in files)):
            kept = {key: mark[key] for key in ("iteration", "progress")}
            return {**kept, "settings": translated(mark["settings"])}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    return None


def _check_settings(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = sorted(differences(then, now))
    if changed:
        raise CheckpointError(
            f"{path}\n  reason: it was taken under another configuration: {'; '.join(changed)}\n"
            "  remedy: resume with the settings of that run's config.yaml, or start a new run"
        )


def differences(then: Any, now: Any, key: str = "") -> Iterator[str]:
    """Every difference between two nested mappings of plain data: KEY=NEW (was OLD)."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in then.keys() | now.keys():
            inner = f"{key}.{name}" if key else name
            yield from differences(then.get(name), now.get(name), inner)
    elif then != now or type(then) is not type(now):
        yield f"{key}={json.dumps(now)} (was {json.dumps(then)})"


def _is_old(path: Path) -> bool:
    return path.name.startswith(".old-")
