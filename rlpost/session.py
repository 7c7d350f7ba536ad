"""What every task on the cluster shares: run directory, Ray, engines, learner, display; opened and closed together.

    open_session ─▶ model folder ─▶ precision ─▶ run directory ─▶ Ray ─▶ engines start │ learner starts ─▶ all ready
    publish      ─▶ summary.json, report.html, the table on the console

Whatever ends a session (its end, an error, Ctrl-C) closes all of it, leaves the record and no process behind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlpost import cluster, models
from rlpost.canary import canary_ids
from rlpost.compose import to_yaml
from rlpost.config import Config
from rlpost.learner.group import LearnerGroup
from rlpost.metrics import Clock
from rlpost.precision import settled
from rlpost.progress import Progress, results_table
from rlpost.prompts import remarks
from rlpost.report import write_report
from rlpost.rollout.chat import Chat
from rlpost.rollout.pool import RolloutPool
from rlpost.rundir import RunDir
from rlpost.schedule import steps_of
from rlpost.shipping import own_modules
from rlpost.tracking import Tracker

# Settings that a resumed run may change: where it runs, what it reports, how long it goes on.
_FREE = ("output_dir", "resume", "ray", "tracking", "eval", "eval_variants", "name", "compare")
_FREE_WITHIN = {
    "algo": ("iterations",),
    "rollout": ("timeout_s", "restarts", "env_timeout_s"),
    "learner": ("timeout_s",),
}


@dataclass
class Session:
    cfg: Config
    console: Console
    model_folder: Path
    chat: Chat
    run_dir: RunDir
    pool: RolloutPool
    tracker: Tracker
    progress: Progress
    clock: Clock
    started: float
    learner_group: LearnerGroup | None

    def book(self, stage: str) -> None:
        """Give the time since the last line of metrics.jsonl a line of its own, so that the lines add up to the run."""
        self.run_dir.append_metrics({"stage": stage, **self.clock.lap()})

    @property
    def learner(self) -> LearnerGroup:
        assert self.learner_group is not None, "this task was opened without a learner"
        return self.learner_group


@contextmanager
def open_session(cfg: Config, with_learner: bool) -> Iterator[Session]:
    """Raises an RlpostError when something cannot start: of the model, its prompts, a folder, Ray, engines, learner."""
    started, clock, console = time.monotonic(), Clock(), Console()
    model_folder = models.resolve(cfg.model)
    cfg = settled(cfg, model_folder, console)
    chat = Chat.load(model_folder)
    ids = canary_ids(cfg, chat)
    for remark in remarks(cfg, chat):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    run_dir = _run_dir(cfg)
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        tracker = Tracker(cfg, run_dir.path, plain(cfg))
        stack.callback(tracker.finish)
        progress = Progress(console, steps_of(cfg))
        stack.callback(progress.close)
        progress.stage("starting Ray, engines and learner")
        needs = cluster.Needs.of(cfg) if with_learner else _without_learner(cfg)
        logs, modules = run_dir.path / "logs", own_modules(cfg)
        stack.enter_context(cluster.connect(cfg.ray, needs, keep_logs=logs, modules=modules))
        pool = RolloutPool(cfg, model_folder)
        stack.callback(pool.close)
        learner = None
        if with_learner:
            learner = LearnerGroup(cfg, model_folder, ids)
            stack.callback(learner.close)
        pool.wait_ready()
        yield Session(
            cfg, console, model_folder, chat, run_dir, pool, tracker, progress, clock, started, learner
        )
        if wrong := pool.close_environments():  # not after an error, when a worker may still be playing
            told = f"closing environments: {len(wrong)} did not close, the first: {wrong[0]}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def publish(
    session: Session,
    evaluations: Mapping[str, Any],
    variants: Mapping[str, Any],
    iterations: int,
    swap_seconds: Sequence[float],
    gaps: Sequence[float],
) -> None:
    """Write the result of a finished run and show it. A figure that was not measured is null."""
    summary = {
        "eval": dict(evaluations),
        "variants": dict(variants),
        "train_variant": session.cfg.train_variant,
        "iterations": iterations,
        "seconds": time.monotonic() - session.started,
        "swap_seconds_median": statistics.median(swap_seconds) if swap_seconds else None,
        "logprob_gap_mean": statistics.fmean(gaps) if gaps else None,
        "workers_replaced": session.pool.restarts,
    }
    session.run_dir.write_summary(summary)
    session.progress.close()
    results_table(session.console, summary)
    report = write_report(session.run_dir)
    session.console.print(f"report: {report}", highlight=False, soft_wrap=True)


def plain(cfg: Config) -> dict[str, Any]:
    """The configuration as JSON-able data."""
    return {key: _plain(value) for key, value in asdict(cfg).items()}


def training_settings(cfg: Config) -> dict[str, Any]:
    """The settings that a checkpoint must share with the run that takes it up."""
    settings = {key: value for key, value in plain(cfg).items() if key not in _FREE}
    for key, free in _FREE_WITHIN.items():
        settings[key] = {name: value for name, value in settings[key].items() if name not in free}
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.value if hasattr(value, "value") else value


def _run_dir(cfg: Config) -> RunDir:
    if cfg.resume is not None:
        run_dir = RunDir.open(cfg.resume)
    else:
        run_dir = RunDir.create(cfg.output_dir, cfg.name, cfg.seed, to_yaml(cfg))
    run_dir.write_versions()
    return run_dir


def _without_learner(cfg: Config) -> cluster.Needs:
    rollout = cfg.rollout
    return cluster.Needs(cpus=rollout.workers * rollout.cpus, gpus=rollout.workers * rollout.gpus)
