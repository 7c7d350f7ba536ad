"""The console of a comparison: a line when a cell starts and when it ends, and a live bar on a terminal."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.status import Status as Spinner
from rich.text import Text

from rlpost.compare.cells import CellFiles, Ended
from rlpost.compare.design.plan import CellPlan
from rlpost.compare.design.types import Status
from rlpost.pages.console import duration

_TAIL_BYTES = 2000


class Display:
    """Shows which cells are running, how many are done, and the time left. Each cell has its own log."""

    def __init__(self, console: Console, total: int, concurrency: int) -> None:
        self._console, self._total, self._concurrency = console, total, concurrency
        self._ended = 0
        self._seconds: dict[str, list[float]] = {}  # durations of complete cells, by arm
        self._spinner: Spinner | None = None
        if console.is_terminal:
            self._spinner = console.status("starting")
            self._spinner.start()

    def skipped(self, cell: CellPlan, ended: Ended) -> None:
        """Report a cell that an earlier start finished."""
        self._ended += 1
        self._seconds.setdefault(cell.arm, []).append(ended.seconds)
        self._print(f"{self._ended}/{self._total} {cell.name} was done before")

    def began(self, cell: CellPlan, log: Path) -> None:
        self._print(f"{cell.name} begins; its log: {log}")

    def ended(self, cell: CellPlan, ended: Ended, left: Iterable[CellPlan]) -> None:
        """Report the end of a cell; `left` are the cells that have not ended."""
        self._ended += 1
        if ended.status is Status.DONE:
            self._seconds.setdefault(cell.arm, []).append(ended.seconds)
        remaining = time_left(self._seconds, [each.arm for each in left], self._concurrency)
        said = f"done in {duration(ended.seconds)}" if ended.error is None else f"FAILED: {ended.error}"
        left_text = "" if remaining is None else f"; left about {duration(remaining)}"
        self._print(f"{self._ended}/{self._total} {cell.name} {said}{left_text}")

    def at_work(self, running: Mapping[CellFiles, float]) -> None:
        """Refresh the live line: each running cell, its time so far, and the last line of its log."""
        if self._spinner is not None:
            said = (f"{f.name} {duration(s)}: {last_line(f.log)}" for f, s in running.items())
            self._spinner.update(Text("\n".join(said)))

    def close(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def time_left(seconds: Mapping[str, Sequence[float]], arms: Sequence[str], concurrency: int) -> float | None:
    """Seconds that the cells of `arms` will still take; None if no cell has finished.

    Each counts as the mean of its arm's finished cells, or of all finished cells if its arm has none.
    """
    known = [each for of_arm in seconds.values() for each in of_arm]
    if not known:
        return None
    expected = (statistics.fmean(seconds.get(arm, known)) for arm in arms)
    return sum(expected) / concurrency


def last_line(log: Path) -> str:
    """The last line that is not blank; empty if there is none yet."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = deque((line for line in file.read().decode(errors="replace").splitlines() if line.strip()), 1)
    return lines[0].strip() if lines else ""
