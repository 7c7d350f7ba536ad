"""The console output of a run: one line per iteration, a live bar on a terminal, the table at the end.

If the output is not a terminal (a log file, a pipe), only plain lines are printed, without control codes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from rlpost.record import failures, retention
from rlpost.record.summary import (
    AT_K,
    MISSING,
    REWARD,
    SUCCESS,
    Measure,
    at_k_share,
    changes,
    entry_of,
    has_steps,
    held_out_told,
    measure_of,
    most_samples,
    role,
    rows_of,
    share,
    stages_of,
    step_share,
)

WINDOW = 8  # iterations from which the remaining time is estimated


class Progress:
    """Shows the progress of a run of `total` iterations or supervised steps; None if the number is unknown."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._lately: deque[float] = deque(maxlen=WINDOW)
        self._closing_seconds = 0.0
        self._measure = SUCCESS
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[stand]}", markup=False), console=console)
            self._task = self._bar.add_task(
                "starting", total=total, stand="" if total is None else f"0/{total}"
            )
            self._bar.start()

    def stage(self, text: str) -> None:
        """Show the current stage."""
        if self._bar is None:
            self._print(text)
        else:
            self._bar.update(self._task, description=text)

    def closing(self, seconds: float) -> None:
        """Add `seconds` for what follows the last iteration (an evaluation) to the remaining time."""
        self._closing_seconds = seconds

    def lead_with_reward(self) -> None:
        """Begin further lines with the mean reward, since the environment grades answers (see `measure_of`)."""
        self._measure = REWARD

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to a finished step. `done` counts from 1; `metrics` is its line of metrics.jsonl."""
        if "seconds/total" in metrics:
            self._lately.append(metrics["seconds/total"])
        if self._bar is not None:
            self._bar.update(self._task, completed=done, stand=f"{done}{self._of} {self._time_left(done)}")

    def iteration(self, done: int, metrics: Mapping[str, float], notes: Sequence[str] = ()) -> None:
        """Move the bar like `step`, and print a line for the iteration and one for each of `notes`."""
        self.step(done, metrics)
        if metrics.get("partly_right"):
            self.lead_with_reward()
        line = f"{done:>4}{self._of}  {iteration_line(metrics, self._measure)}  {self._time_left(done)}"
        self._print(line.rstrip())
        for note in notes:
            self.note(note)

    def note(self, text: str) -> None:
        """Print a permanent line: what a user must know about the finished step or evaluation."""
        self._print(f"      note: {text}")

    @property
    def _of(self) -> str:
        return "" if self._total is None else f"/{self._total}"

    def close(self) -> None:
        """Remove the bar from the screen. It may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _time_left(self, done: int) -> str:
        if self._total is None:
            return ""
        if not self._lately:
            return f"left {MISSING}"
        mean = sum(self._lately) / len(self._lately)
        return f"left {duration(mean * (self._total - done) + self._closing_seconds)}"

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def iteration_line(metrics: Mapping[str, float], measure: Measure = SUCCESS) -> str:
    """Success and mean reward, KL and decoding speed, each `-` if `metrics` lacks it; failed episodes if there are any.

    `measure`, SUCCESS or REWARD, comes first.
    """
    episodes = metrics.get("episodes", 0.0)
    failed = [f"{kind} {metrics[kind]:g}/{episodes:g}" for kind in failures.KINDS if metrics.get(kind)]
    success = f"success {_shown(metrics, 'success', '6.1%')}"
    reward = f"reward {_shown(metrics, 'reward', '7.3f')}"
    return "  ".join(
        (
            *((success, reward) if measure is SUCCESS else (reward, success)),
            f"KL {_shown(metrics, 'kl_reference', '7.4f')}",
            f"tokens/s {_speed(metrics)}",
            *failed,
        )
    )


def _shown(metrics: Mapping[str, float], key: str, form: str) -> str:
    return format(metrics[key], form) if key in metrics else MISSING


def _speed(metrics: Mapping[str, float]) -> str:
    """Sampled tokens per second of rollout; of the whole iteration, if engines play while the learner works."""
    during = "seconds/total" if "streaming/in_flight" in metrics else "seconds/rollout"
    if "tokens/sampled" not in metrics or not metrics.get(during):
        return MISSING
    return f"{metrics['tokens/sampled'] / metrics[during]:6,.0f}"


def duration(seconds: float) -> str:
    """A duration as text: 3 s, 2:05 or 1:02:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def results_table(console: Console, summary: Mapping[str, Any]) -> None:
    """Print success with 95% intervals: one row per variant and decoding, one column per evaluated stage.

    If the environment grades answers, the table shows the mean reward, with success in a row below. If episodes have
    several steps, it also has the share of right steps; if each instance was played several times, pass@k and
    majority@k of all its samples. Changes on the same instances are listed below it.
    """
    stages, measure = stages_of(summary), measure_of(summary)
    title = f"{measure.name.capitalize()}, with 95% intervals"
    # Without a border, three stages fit the 80 columns of a log file.
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for heading in ("variant", "", ""):
        table.add_column(heading, no_wrap=True)
    for stage in stages:
        table.add_column(stage, justify="right", no_wrap=True)
    for variant, decoding in rows_of(summary):
        entries = [entry_of(summary, stage, variant, decoding) for stage in stages]
        table.add_row(
            Text(variant), role(summary, variant), decoding, *map(Text, map(measure.shown, entries))
        )
        if measure is not SUCCESS:
            table.add_row("", "", SUCCESS.name, *map(Text, map(share, entries)))
        if has_steps(summary):
            table.add_row("", "", "right steps", *map(step_share, entries))
        for name, k in most_samples(summary, variant, decoding):
            table.add_row("", "", f"{AT_K[name]}{k}", *(at_k_share(entry, name, k) for entry in entries))
    for variant, told in held_out_told(summary).items():
        console.print(f"held-out loss of {variant}, nats per token: {told}", soft_wrap=True)
    if stages:
        console.print(table)
    for sentence in changes(summary) if stages else ():
        console.print(sentence, soft_wrap=True)
    if lost := retention.told(retention.of_summary(summary.get("retention", {}))):
        console.print(lost, soft_wrap=True)
