"""Decides when training evaluates and when it ends: by count, or by compute spent.

    each step's line of metrics.jsonl ─▶ add ─▶ due: evaluate now?   over: was that the last step?

Counts are known in advance (`eval.every`, a last step). Whether amounts of compute (`budget.amounts`) are reached is
known once tokens are measured; the step that ends nearest to an amount counts as reaching it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlpost.config.schema import Config, Task
from rlpost.record.compute import spent
from rlpost.weights.models import parameters


def steps_of(cfg: Config) -> int | None:
    """The number of iterations or supervised steps of the task; None if it has no steps, or a budget decides."""
    if cfg.task is Task.eval or cfg.budget.amounts:
        return None
    return cfg.sft.steps if cfg.task is Task.sft else cfg.algo.iterations


class Schedule:
    """The schedule of a run whose steps (iterations) are numbered 0 .. last - 1."""

    def __init__(self, cfg: Config, last: int, model_folder: Path) -> None:
        self._last, self._every = last, cfg.eval.every
        self._measure, self._amounts = cfg.budget.measure.value, tuple(cfg.budget.amounts)
        self._parameters = parameters(model_folder) if self._amounts else 0
        self._done = self._reached = 0
        self._spent = 0.0
        self._fresh = False  # whether the last step reached an amount

    @property
    def over(self) -> bool:
        """Whether no step follows. The loop then makes its own last evaluation, whatever `due` says."""
        return self._done >= self._last or 0 < len(self._amounts) == self._reached

    @property
    def due(self) -> bool:
        """Whether an evaluation is due after the last added step, and more steps follow."""
        by_count = self._every > 0 and self._done > 0 and self._done % self._every == 0
        return (by_count or self._fresh) and not self.over

    @property
    def next(self) -> str:
        """The console's name of the next step: 3/16, or the share of the budget spent before it."""
        if self._amounts:
            return f"{self._done + 1}, {self._spent / self._amounts[-1]:.0%} of the budget spent"
        return f"{self._done + 1}/{self._last}"

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a finished step, given its line of metrics.jsonl."""
        self._done += 1
        if self._amounts:
            self._spend(line)

    def replay(self, lines: Iterable[Mapping[str, Any]], key: str) -> None:
        """Count the steps of a resumed run: the lines that have `key` (iteration or step)."""
        for line in lines:
            if key in line:
                self.add(line)

    def _spend(self, line: Mapping[str, Any]) -> None:
        cost = getattr(spent([line], self._parameters)[-1], self._measure)
        self._spent += cost
        before = self._reached
        while self._reached < len(self._amounts) and self._spent + cost / 2 >= self._amounts[self._reached]:
            self._reached += 1
        self._fresh = self._reached > before
