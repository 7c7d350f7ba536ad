"""Processes that reach for one folder at the same moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

from rlpost.errors import OutputError
from rlpost.record.folders import new_folder
from rlpost.record.run_dir import RunDir

PROCESSES, ROUNDS, DEADLINE_S = 4, 25, 120
REFUSED = "refused"
Take = Callable[[str | None], Path]


def take_run(output_dir: str | None) -> Path:
    return RunDir.create(output_dir, "demo", 0, "seed: 0\n").path


def take_comparison(output_dir: str | None) -> Path:
    """As rlpost.compare.run, which takes seconds to import."""
    return new_folder(output_dir, Path("outputs/demo/now"), first="cells")


def contend(take: Take, folder: Path, explicit: bool) -> list[list[str]]:
    """What each of PROCESSES got in each of ROUNDS, begun together: a folder's path, or REFUSED; a list a round.

    `folder` becomes the current one; `explicit`: all ask for one folder by name.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with context.Pool(PROCESSES, _init, (barrier, folder)) as pool:
        found = pool.starmap_async(_rounds, [(take, explicit)] * PROCESSES, chunksize=1).get(DEADLINE_S)
    return [list(each) for each in zip(*found, strict=True)]


def _init(barrier: Barrier, folder: Path) -> None:
    global _barrier
    _barrier = barrier
    os.chdir(folder)


def _rounds(take: Take, explicit: bool) -> list[str]:
    found = []
    for number in range(ROUNDS):
        _barrier.wait(DEADLINE_S)
        try:
            found.append(str(take(f"mine-{number}" if explicit else None)))
        except OutputError as error:
            if "not empty" not in str(error):
                raise
            found.append(REFUSED)
    return found
