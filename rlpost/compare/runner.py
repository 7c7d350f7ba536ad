"""Runs the cells of a plan. A cell starts when the cells it needs are done; several run at once if so configured.

    waiting ─▶ its needs are done ─▶ running (cells.py, served_cells.py) ─▶ read and checked ─▶ done │ failed
              └▶ a need has failed ─▶ failed

A later start skips cells that are done (their results are on disk) and runs failed or stopped cells again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlpost.compare.cells import CellFiles, Ended, Process, Run, refuse_changes, stop
from rlpost.compare.design.plan import CellPlan, cell_name, plan, reference_arm, settings_of
from rlpost.compare.design.types import Status, is_start
from rlpost.compare.display import Display
from rlpost.compare.reading import Read, evaluated_on, read_cell
from rlpost.config.schema import Config
from rlpost.errors import RlpostError

POLL_S = 0.25
_SHOWN = 3  # instances named if a cell was evaluated on instances it was trained on


class Runner:
    """Calls `on_change` after every cell that ended; `self.read` and `self.ended` are up to date then."""

    def __init__(
        self,
        cfg: Config,
        folder: Path,
        parameters: int,
        display: Display,
        on_change: Callable[[Runner], None],
        start: Callable[[CellFiles, Config], Run] = Process,
    ) -> None:
        self.cells = plan(cfg)
        self.read: dict[str, Read] = {}
        self.ended: dict[str, Ended] = {}
        self._cfg, self._folder, self._parameters = cfg, folder, parameters
        self._display, self._on_change, self._start = display, on_change, start
        self._running: dict[CellPlan, Run] = {}

    def run(self, concurrency: int) -> None:
        """Run until every cell has ended. If an error or a signal ends it earlier, the running cells are stopped.

        Raises ConfigError if a cell was planned earlier with other settings.
        """
        try:
            while self._waiting() or self._running:
                for cell in self._waiting():
                    if blocked_by := self._blocked_by(cell):
                        self._tell(cell, Ended(Status.FAILED, f"{blocked_by} failed", 0.0))
                    elif (
                        self._ready(cell)
                        and not self._finished_earlier(cell)
                        and len(self._running) < concurrency
                    ):
                        self._begin(cell)
                self._poll()
        finally:
            stop(self._running.values())

    def files(self, cell: CellPlan) -> CellFiles:
        return CellFiles(self._folder, cell.name)

    def _finished_earlier(self, cell: CellPlan) -> bool:
        """Whether an earlier start finished the cell and its record can still be read. If not, the cell runs again."""
        files = self.files(cell)
        ended = files.read_ended()
        if ended is None or ended.status is not Status.DONE or not files.run_dir.path.is_dir():
            return False
        refuse_changes(files, self._settings(cell))
        if self._accepted(cell, ended).status is not Status.DONE:
            return False
        self.ended[cell.name] = ended
        self._display.skipped(cell, ended)
        return True

    def _waiting(self) -> list[CellPlan]:
        return [cell for cell in self.cells if cell.name not in self.ended and cell not in self._running]

    def _ready(self, cell: CellPlan) -> bool:
        return all(name in self.read for name in cell.needs)

    def _blocked_by(self, cell: CellPlan) -> str | None:
        return next((name for name in cell.needs if name in self.ended and name not in self.read), None)

    def _settings(self, cell: CellPlan) -> Config:
        """The configuration of the cell. `cell.needs` ensures that the reference's compute is known by then."""
        reference = reference_arm(self._cfg)
        amounts: list[float] = []
        if cell.arm != reference and not is_start(cell.arm):
            points = self.read[cell_name(reference, cell.seed)].cell.points
            amounts = [float(getattr(p.compute, self._cfg.compare.match_on.value)) for p in points]
        return settings_of(self._cfg, cell, self._folder, amounts)

    def _begin(self, cell: CellPlan) -> None:
        files, cfg = self.files(cell), self._settings(cell)
        refuse_changes(files, cfg)
        self._running[cell] = self._start(files, cfg)
        self._display.began(cell, files.log)

    def _poll(self) -> None:
        over = {cell: ended for cell, running in self._running.items() if (ended := running.ended())}
        for cell, ended in over.items():
            del self._running[cell]
            self._end(cell, ended)
        if not over and self._running:
            self._display.at_work({r.files: r.seconds for r in self._running.values()})
            time.sleep(POLL_S)

    def _end(self, cell: CellPlan, ended: Ended) -> None:
        ended = self._accepted(cell, ended)
        self.files(cell).write_ended(ended)
        self._tell(cell, ended)

    def _tell(self, cell: CellPlan, ended: Ended) -> None:
        self.ended[cell.name] = ended
        self._display.ended(cell, ended, [*self._running, *self._waiting()])
        self._on_change(self)

    def _accepted(self, cell: CellPlan, ended: Ended) -> Ended:
        """Read a cell that ended as done. It counts as failed if it cannot be read or fails the checks."""
        if ended.status is Status.DONE:
            try:
                read = read_cell(
                    cell, self._settings(cell), self._folder, self._parameters, self._cfg.compare.points
                )
                _check_held_out(read, self.read[cell.needs[0]] if cell.needs else None)
                _check_paired(read, self.read)
                self.read[cell.name] = read
            except RlpostError as error:
                return Ended(Status.FAILED, str(error), ended.seconds)
        return ended


def _check_held_out(read: Read, start: Read | None) -> None:
    """Raises RlpostError if the cell, or its warm start, was trained on instances that it is evaluated on."""
    trained = read.trained | (start.trained if start else frozenset())
    if both := sorted(trained & evaluated_on(read.cell)):
        raise RlpostError(
            f"{len(both)} evaluation instances were trained on, such as {', '.join(both[:_SHOWN])}: the splits of the"
            " environment overlap"
        )


def _check_paired(read: Read, others: Mapping[str, Read]) -> None:
    """Raises RlpostError unless every evaluation has the same instances, in the same order, as earlier ones."""
    known: dict[str, Sequence[str]] = {}
    for cell in (*(other.cell for other in others.values()), read.cell):
        for point in cell.points:
            for variant, evaluation in point.evaluations.items():
                if known.setdefault(variant, evaluation.instances) != evaluation.instances:
                    raise RlpostError(
                        f"its evaluation of {variant} has other instances than the cells before"
                    )
