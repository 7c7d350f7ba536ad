"""What `watch` shows of a folder: one page of a run; of a comparison a table of its cells, and a page of each."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf

from rlpost.compare.cells import CellFiles
from rlpost.compare.design.plan import cell_name
from rlpost.compare.design.types import INIT
from rlpost.errors import RlpostError
from rlpost.pages import render
from rlpost.pages.live_page import LiveRun
from rlpost.record import run_error
from rlpost.record.run_dir import RunDir
from rlpost.record.run_state import State, state_of

WAIT_S = 30.0  # that a request waits for the pages of others


@dataclass(frozen=True)
class View:
    """What one page shows: HTML by the name of its fragment."""

    title: str
    fragments: Mapping[str, bytes]
    up: str | None = None  # the address of the page above it


class Watched:
    """The views of a folder, by the parts of a path: () is the folder's own, ("cells", NAME) a cell's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = LiveRun(folder)
        self._cells: dict[str, LiveRun] = {}
        self._lock = threading.Lock()

    def view(self, parts: tuple[str, ...]) -> View | None:
        """None where there is no such page. Raises TimeoutError where other requests take too long."""
        if not self._lock.acquire(timeout=WAIT_S):
            raise TimeoutError
        try:
            return self._view(parts)
        finally:
            self._lock.release()

    def _view(self, parts: tuple[str, ...]) -> View | None:
        config = self._config()
        if not (str(OmegaConf.select(config, "task")) == "compare" or (self._folder / "cells").is_dir()):
            return View(self._run.title, self._run.fragments()) if parts == () else None
        names = self._names(config)
        if parts == ():
            return View(self._run.title, self._comparison([self._row(name) for name in names]))
        if len(parts) == 2 and parts[0] == "cells" and parts[1] in names and self._begun(parts[1]):
            cell = self._cell(parts[1])
            return View(cell.title, cell.fragments(), up="../../")
        return None

    def _config(self) -> DictConfig:
        """The folder's settings; none where they cannot be read, which a run's own page then tells."""
        try:
            return self._run.config()
        except (RlpostError, OSError):
            return OmegaConf.create({})

    def _names(self, config: DictConfig) -> list[str]:
        """The cells of the plan, seed by seed, and any other that has begun."""
        arms = [INIT, *(OmegaConf.select(config, "compare.arms") or ())]
        planned = [
            cell_name(str(a), s) for s in OmegaConf.select(config, "compare.seeds") or () for a in arms
        ]
        begun = sorted(path.stem for path in (self._folder / "cells").glob("*.yaml"))
        return list(dict.fromkeys((*planned, *begun)))

    def _begun(self, name: str) -> bool:
        return CellFiles(self._folder, name).run_dir.config.is_file()

    def _cell(self, name: str) -> LiveRun:
        if name not in self._cells:
            self._cells[name] = LiveRun(CellFiles(self._folder, name).run_dir.path)
        return self._cells[name]

    def _comparison(self, cells: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
        ended = sum(cell["ended"] for cell in cells)
        try:
            error = run_error.read(self._folder)
            said = [] if error is None else [f"The comparison ended with {error}"]
        except RlpostError as broken:
            said = [str(broken)]
        return {
            "status": render.render(
                "live_status.html.jinja",
                state=self._state(ended == len(cells)),
                progress=f"{ended} of {len(cells)} cells have ended",
                left=None,
                age=None,
                shown=[],
            ),
            "warnings": render.render("live_warnings.html.jinja", said=said),
            "cells": render.render("live_cells.html.jinja", cells=cells),
        }

    def _state(self, all_ended: bool) -> str:
        """A comparison that has finished leaves no summary.json: all its cells have ended, and nobody works."""
        state = state_of(RunDir(self._folder))
        return State.FINISHED.value if all_ended and state in (State.STOPPED, State.UNKNOWN) else state.value

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "error": None, "address": None, "ended": False}
        if self._begun(name):
            row |= {**self._cell(name).progress(), "address": f"cells/{quote(name, safe='')}/"}
        else:
            row |= {"state": "waiting", "progress": "-", "success": "-", "age": ""}
        try:
            ended = CellFiles(self._folder, name).read_ended()
        except RlpostError as error:
            return row | {"error": str(error)}
        return (
            row if ended is None else row | {"state": ended.status.value, "error": ended.error, "ended": True}
        )
