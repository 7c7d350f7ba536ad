"""What all tasks on the cluster share: run directory, Ray, engines, learner and display, opened and closed together.

    open_session ─▶ model folder ─▶ precision ─▶ run directory ─▶ Ray ─▶ engines start │ learner starts ─▶ all ready
    publish      ─▶ summary.json, report.html, the table on the console

However a session ends (normally, by an error, by Ctrl-C), all of it is closed; the record stays, no process does. Only
in a process that keeps them (rlpost/tasks/engines.py) do Ray and the engines stay for the next session.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from rlpost.cluster.placement import Plan
from rlpost.cluster.precision import settled
from rlpost.config import learning_rates
from rlpost.config.compose import to_yaml
from rlpost.config.presets import TABLE as ALGORITHMS
from rlpost.config.schema import Config, Task
from rlpost.envs.terminal import plain_console
from rlpost.learner.group import LearnerGroup
from rlpost.learner.schedules import new_end
from rlpost.pages.console import Progress, results_table
from rlpost.pages.run_page import write_report
from rlpost.record import locks, retention, run_error, teacher
from rlpost.record.checkpoint import differences
from rlpost.record.files import write_atomic
from rlpost.record.gains import gains
from rlpost.record.memory_growth import Growth
from rlpost.record.metrics import Clock
from rlpost.record.run_dir import RunDir, Sitting
from rlpost.record.summary import held_out_losses
from rlpost.record.tracking import Tracker, Trackers
from rlpost.rollout.chat import Chat
from rlpost.rollout.elsewhere import elsewhere, plays_elsewhere
from rlpost.rollout.pool import RolloutPool
from rlpost.tasks import turns
from rlpost.tasks.canary import canary_ids
from rlpost.tasks.engines import engines
from rlpost.tasks.lag import RecentPolicies
from rlpost.tasks.portable import portable
from rlpost.tasks.prompts import remarks
from rlpost.tasks.rehearsal import rehearse
from rlpost.tasks.schedule import steps_of
from rlpost.tasks.start_examples import start_examples
from rlpost.validate.memory import check_memory
from rlpost.validate.model import check_model
from rlpost.weights import models, teachers

# Settings that a resumed run may change permanently: where it runs, what it reports, how long it continues.
_FREE = ("output_dir", "resume", "ray", "tracking", "eval", "eval_variants", "name", "compare")
_FREE_WITHIN = {
    "algo": ("iterations", "teacher"),  # rlpost.record.teacher compares the teacher's files
    "rollout": (
        "timeout_s",
        "restarts",
        "recycle_mib",
        "env_timeout_s",
        "min_workers",
        "max_workers",
        "sleep",
    ),
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
    earlier: tuple[Sitting, ...] = ()  # the earlier starts of a resumed run
    growth: dict[str, Growth] = field(default_factory=dict)  # of memory, by process; see rlpost.tasks.memory
    policies: RecentPolicies = field(init=False)  # those that play training's episodes and evaluations

    def __post_init__(self) -> None:
        # Only reinforcement learning plays episodes to learn from.
        self.policies = RecentPolicies(self.cfg.rollout.lag if self.cfg.task is Task.rl else 0)

    def book(self, stage: str, measured: Mapping[str, float] | None = None) -> None:
        """Write the time since the last line of metrics.jsonl as its own line, so that the lines sum to the run's time.

        `measured` is added to the line.
        """
        self.run_dir.append_metrics({"stage": stage, **(measured or {}), **self.clock.lap()})

    def sittings(self) -> tuple[Sitting, ...]:
        """Every start that worked on the run, the current one last."""
        return (*self.earlier, Sitting(time.monotonic() - self.started, self.pool.restarts))

    @contextmanager
    def sitting(self) -> Iterator[None]:
        """Work on the run. However it ends, its time is recorded for later starts."""
        try:
            yield
        finally:
            self.run_dir.write_sittings(self.sittings())

    @property
    def learner(self) -> LearnerGroup:
        assert self.learner_group is not None, "this task was opened without a learner"
        return self.learner_group


@contextmanager
def open_session(cfg: Config, with_learner: bool) -> Iterator[Session]:
    """Open a session. Raises an RlpostError if something cannot start: model, prompts, folder, Ray, engines, learner.

    Settings that do not fit the model are refused before Ray starts: ConfigError, AdapterError.
    """
    started, clock = time.monotonic(), Clock()
    with ExitStack() as stack:
        with clock.phase("start"):
            session = _started(cfg, with_learner, stack, clock, started)
        yield session
        # Skipped after an error, when a worker may still be playing.
        if wrong := session.pool.close_environments():
            told = f"closing environments: {len(wrong)} did not close, the first: {wrong[0]}"
            session.console.print(told, soft_wrap=True)


def _started(cfg: Config, with_learner: bool, stack: ExitStack, clock: Clock, started: float) -> Session:
    """Open everything; `stack` closes it."""
    console = plain_console()
    model_folder = models.resolve(cfg.model)
    check_model(cfg, model_folder)
    cfg = settled(cfg, model_folder, console)
    check_memory(cfg, model_folder)
    if with_learner:
        cfg = learning_rates.settled(cfg, *models.family_and_width(model_folder), console)
    chat = Chat.load(model_folder, cfg.rollout)
    played = [cfg, elsewhere(cfg)] if plays_elsewhere(cfg) else [cfg]
    for each in played:
        rehearse(each, chat)
    ids = canary_ids(cfg, chat)
    examples = start_examples(cfg, chat) if with_learner else None
    for remark in (remark for each in played for remark in remarks(each, chat)):
        console.print(remark, soft_wrap=True)
    run_dir = stack.enter_context(run_folder(cfg))
    _keep_teacher(cfg, run_dir)
    console.print(f"run directory: {run_dir.path}", soft_wrap=True)
    tracker = Trackers.start(cfg, run_dir.path, plain(cfg))
    stack.callback(tracker.finish)
    progress = Progress(console, steps_of(cfg))
    stack.callback(progress.close)
    progress.stage("starting Ray, engines and learner")
    plan = Plan.of(cfg, with_learner)
    pool = stack.enter_context(engines(cfg, model_folder, plan, run_dir.path / "logs", console))
    learner = None
    if with_learner:
        turns.before_the_learner(cfg, pool)
        learner = LearnerGroup(portable(cfg, model_folder), model_folder, ids, examples, pool.placement)
        stack.callback(learner.close)
    pool.attend(partial(console.print, soft_wrap=True), _nothing if learner is None else learner.check)
    pool.wait_ready()
    return Session(
        cfg,
        console,
        model_folder,
        chat,
        run_dir,
        pool,
        tracker,
        progress,
        clock,
        started,
        learner,
        run_dir.read_sittings(),
    )


def _nothing() -> None:
    """Looks at no learner, where there is none."""


def publish(
    session: Session,
    evaluations: Mapping[str, Any],
    variants: Mapping[str, Any],
    iterations: int,
    swap_seconds: Sequence[float],
    logprob_gaps: Sequence[float],
    canary_gaps: Sequence[float],
) -> None:
    """Write the result of a finished run and show it. A figure that was not measured is null."""
    sittings = session.sittings()
    summary: dict[str, Any] = {
        "eval": dict(evaluations),
        "variants": dict(variants),
        "train_variant": session.cfg.train_variant,
        "iterations": iterations,
        "sittings": len(sittings),
        "seconds": sum(each.seconds for each in sittings),
        "swap_seconds_median": statistics.median(swap_seconds) if swap_seconds else None,
        "logprob_gap_mean": statistics.fmean(logprob_gaps) if logprob_gaps else None,
        "canary_gap_mean": statistics.fmean(canary_gaps) if canary_gaps else None,
        "workers_replaced": sum(each.workers_replaced for each in sittings),
    }
    if losses := held_out_losses(session.run_dir.read_metrics()):
        summary["held_out_loss"] = losses
    if kept := retention.measured(session.run_dir.read_metrics()):
        summary["retention"] = retention.summary(kept)
    show(session.run_dir, session.progress, session.console, summary)


def show(run_dir: RunDir, progress: Progress, console: Console, summary: Mapping[str, Any]) -> None:
    """Write summary.json (with `gains`) and report.html, and print the table."""
    complete = {**summary, "gains": gains(run_dir, summary)}
    run_dir.write_summary(complete)
    progress.close()
    results_table(console, complete)
    report = write_report(run_dir, own_code=True)  # the run has already imported it
    console.print(f"report: {report}", soft_wrap=True)


def plain(cfg: Config) -> dict[str, Any]:
    """The configuration as plain data that JSON can hold."""
    return {key: _plain(value) for key, value in asdict(cfg).items()}


def keep_settings(session: Session) -> None:
    """Write the settings changed by this start into config.yaml, so the next `resume=` keeps them, and say so."""
    run_dir = session.run_dir
    recorded = run_dir.read_settings()
    yaml = to_yaml(replace(session.cfg, resume=None, output_dir=recorded.get("output_dir")))
    if changed := sorted(differences(recorded, OmegaConf.to_container(OmegaConf.create(yaml)))):
        write_atomic(run_dir.config, yaml.encode())
        told = f"kept in {run_dir.config}: {'; '.join(changed)}"
        session.console.print(told, soft_wrap=True)
    if jump := new_end(session.cfg.algo, recorded.get("algo", {}).get("iterations")):
        session.console.print(jump, soft_wrap=True)


def training_settings(cfg: Config) -> dict[str, Any]:
    """The settings that must be the same in a checkpoint and in the run that resumes from it."""
    settings = {key: value for key, value in plain(cfg).items() if key not in _FREE}
    for key, free in _FREE_WITHIN.items():
        settings[key] = {name: value for name, value in settings[key].items() if name not in free}
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.value if hasattr(value, "value") else value


@contextmanager
def run_folder(cfg: Config) -> Iterator[RunDir]:
    """The run's folder, new or that of `cfg.resume`, locked against other processes."""
    if cfg.resume is not None:
        run_dir = RunDir.open(cfg.resume)
    else:
        run_dir = RunDir.create(cfg.output_dir, cfg.name, cfg.seed, to_yaml(cfg))
    with locks.held(run_dir.path), run_error.kept(run_dir.path):
        run_dir.write_versions()
        yield run_dir


def _keep_teacher(cfg: Config, run_dir: RunDir) -> None:
    """Record the teacher that the run learns from. Raises CheckpointError if a resumed run has another."""
    if cfg.task is Task.rl and ALGORITHMS[cfg.algo.name].taught and cfg.algo.teacher is not None:
        teacher.keep(run_dir.path, cfg.algo.teacher, teachers.fingerprint(cfg.algo.teacher))
