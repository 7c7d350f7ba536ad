"""A run as Python sees it: a view of its record, which may be in progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from rlpost import errors
from rlpost.api import execute
from rlpost.api.words import Function, named, words
from rlpost.config.compose import compose
from rlpost.config.overrides import Override
from rlpost.config.schema import Task
from rlpost.config.trust import refuse_unnamed_code
from rlpost.envs import given
from rlpost.errors import OutputError, RlpostError
from rlpost.record import run_error
from rlpost.record.folders import CONSOLE
from rlpost.record.retention import Measured, measured
from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.record.run_error import RunError
from rlpost.record.summary import headlines
from rlpost.types import Trajectory

if TYPE_CHECKING:
    from rlpost.api.background import Process

STOP_S = 90.0  # that a run has to close its engines and its cluster


def open_run(path: str | Path) -> Run:
    """An earlier run, or one that is in progress elsewhere, by its folder. Raises OutputError where that is none."""
    run = Run(Path(path))
    if not run._record.config.is_file():
        raise OutputError(
            f"{path}\n  reason: it is no run directory (config.yaml is missing)\n"
            "  remedy: name the folder that an earlier run printed"
        )
    return run


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str  # start, before, rl, ... as in metrics.jsonl; finished or failed at the end
    step: int  # iterations, or for task=sft steps, that are done
    total: int | None  # of these; None where a budget decides, and where the task takes none


@dataclass(frozen=True)
class Run:
    """A run's record, read anew each time: it may be in progress. `path` is its folder."""

    path: Path
    _objects: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what Python gave it
    _trusted: bool = field(default=False, repr=False)  # whether this process has run the code that it names

    @property
    def _record(self) -> RunDir:
        return RunDir(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, nested, as config.yaml has it."""
        return self._record.read_settings()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `stage` says of what; those of iterations have `iteration` (docs/metrics.md)."""
        return self._record.read_metrics()

    @property
    def adapter(self) -> Path:
        """The trained adapter's folder, which PEFT loads. Raises OutputError where there is none yet."""
        folder = self._record.adapter
        if not (folder / "adapter_config.json").is_file():
            raise OutputError(
                f"{folder}\n  reason: there is no adapter: the run is not finished, or trained none\n"
                f"  remedy: train(resume={str(self.path)!r}) finishes a run that was interrupted"
            )
        return folder

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result: success by stage, variant and decoding, with intervals; None until the run is finished."""
        return self._record.read_summary()

    @property
    def retention(self) -> list[Measured]:
        """What training cost elsewhere, a stage each, in order (docs/retention.md); empty unless it was measured."""
        return measured(self.metrics)

    @property
    def findings(self) -> list[str]:
        """What may be said of the result, a sentence each, with intervals; empty until the run is finished."""
        summary = self.summary
        return [] if summary is None else headlines(summary)

    @property
    def report(self) -> Path:
        """The page of the run. Raises OutputError where it is not written yet."""
        if not self._record.report.is_file():
            raise OutputError(
                f"{self._record.report}\n  reason: the run is not finished\n  remedy: rlpost report RUN writes the"
                " page of a run in progress"
            )
        return self._record.report

    @property
    def error(self) -> RunError | None:
        """What ended the last start of the run; None where nothing did, and for Ctrl-C."""
        return run_error.read(self.path)

    @property
    def progress(self) -> Progress:
        if not self._record.config.is_file():  # of a run that `start` has just started
            return Progress("start" if self.error is None else "failed", 0, None)
        settings, lines = self.settings, self.metrics
        sft = settings["task"] == Task.sft.value
        total: int | None = settings["sft"]["steps"] if sft else settings["algo"]["iterations"]
        if settings["budget"]["amounts"] or settings["task"] not in (Task.rl.value, Task.sft.value):
            total = None
        done = [
            line["step" if sft else "iteration"] for line in lines if ("step" if sft else "iteration") in line
        ]
        if self.error is not None:
            stage = "failed"
        elif self._record.summary.is_file():
            stage = "finished"
        else:
            stage = str(lines[-1]["stage"]) if lines else "start"
        return Progress(stage, max(done, default=-1) + 1, total)

    @property
    def episode_files(self) -> list[str]:
        """The names that `episodes` takes: iteration-000002, eval-after-default-greedy and so on."""
        return sorted(path.stem for path in self._record.trajectories.glob("*.jsonl"))

    def episodes(self, name: str) -> list[Trajectory]:
        """Episodes as they were played. Raises OutputError for a name that is not in `episode_files`."""
        if name not in self.episode_files:
            there = ", ".join(self.episode_files) or "none"
            raise OutputError(f"{self.path}: {name}\n  reason: no such episodes\n  remedy: there are {there}")
        return read_trajectories(self._record.trajectories_file(name))

    def evaluate(
        self,
        *,
        env: str | type[gymnasium.Env[Any, Any]] | None = None,
        data: str | Path | None = None,
        reward: str | Function | Sequence[str | Function] | None = None,
        eval_variants: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Evaluate the run's adapter under its own settings, but for those that are given here: another run.

        A run that `open_run` has opened may be somebody else's: code that its record names is given again, by `env` or
        `reward`, which says that it is trusted. Raises ConfigError otherwise, and as `rlpost.evaluate`.
        """
        handover = given.Handover()
        settled: dict[str, Any] = {
            "task": Task.eval,
            "adapter": self.adapter,
            **named(handover, env, data, reward, None),
        }
        if eval_variants is not None:
            settled["eval_variants"] = eval_variants
        typed = words(self._record.config, None, {"output_dir": None, **(settings or {})}, settled)
        if not self._trusted:
            overrides = [word for word in typed if isinstance(word, Override)]
            # An evaluation calls no reward model.
            trusted = {"algo.reward_function", *(each.key for each in overrides)}
            refuse_unnamed_code(compose(typed), trusted, self._record.config)
        objects = {**self._objects, **handover.objects}
        return Run(execute.run(typed, objects, None, (Task.eval,), None), objects, _trusted=True)


@dataclass(frozen=True)
class Started(Run):
    """A run in a process of its own."""

    _process: Process | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._own.exit_code is None

    def wait(self, timeout_s: float | None = None) -> Run:
        """The run, when it is over. Every wait within it has a deadline of its own.

        Raises:
            TimeoutError: it is not over after `timeout_s`; it goes on.
            RlpostError: it failed, with an error of this kind of `rlpost.errors`, or was stopped.
        """
        code = self._own.wait(timeout_s)
        if code is None:
            raise TimeoutError(f"the run in {self.path} is not over after {timeout_s:g} s")
        if code == 0:
            return Run(self.path, self._objects, self._trusted)
        told = self.error
        if told is None:
            raise RlpostError(
                f"{self.path}\n  reason: the run was stopped, or killed (exit code {code})\n"
                f"  remedy: train(resume={str(self.path)!r}) goes on with it; {CONSOLE} has what it said"
            )
        kind = getattr(errors, told.type, RlpostError)
        lines = (*told.message, *(f"  {line}" for line in told.remedy))
        raise kind(
            "\n".join(lines if kind.__name__ == told.type else (f"{told.type}: {lines[0]}", *lines[1:]))
        )

    def stop(self) -> None:
        """End the run as Ctrl-C does, by force after 90 s. It can be resumed. Nothing where it is over."""
        self._own.stop(STOP_S)

    @property
    def _own(self) -> Process:
        assert self._process is not None, "made by `start`"
        return self._process
