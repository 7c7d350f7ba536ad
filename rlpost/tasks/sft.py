"""Supervised fine-tuning of the adapter on expert answers: the warm start of RL, and `task=sft`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from rlpost.config.schema import Config
from rlpost.record.run_dir import step_name
from rlpost.tasks import retention, training_state, turns
from rlpost.tasks.evaluate import evaluate_stage, evaluate_stage_once
from rlpost.tasks.expert_data import ExpertData
from rlpost.tasks.schedule import Schedule
from rlpost.tasks.session import Session, open_session
from rlpost.tasks.training_state import TrainingState


def train_step(session: Session, data: ExpertData, step: int) -> dict[str, Any]:
    """Take one step; write its line of metrics.jsonl and return it."""
    with session.clock.phase("data"):
        examples, instances = data.batch(step)
        session.run_dir.append_examples(step, instances)
    turns.learner(session.cfg, session.pool, session.clock)
    with session.clock.phase("update"):
        metrics = session.learner.sft_step(examples, step)
    metrics.pop("seconds_update")
    numbers = {"step": step, "examples": float(len(examples)), **metrics, **session.clock.lap()}
    line = {"stage": "sft", **numbers}
    session.run_dir.append_metrics(line)
    session.tracker.log({f"sft/{key}": value for key, value in numbers.items()}, over="sft/step")
    return line


def run(cfg: Config) -> None:
    """`task=sft`: evaluate, train, evaluate; a checkpoint every `tracking.checkpoint_every` steps."""
    with open_session(cfg, with_learner=True) as session:
        schedule = Schedule(cfg, cfg.sft.steps, session.model_folder)
        resumes = cfg.resume is not None
        state = training_state.resume(session, "step", live=False) if resumes else _begin(session)
        schedule.replay(session.run_dir.read_metrics(), "step")
        with session.sitting():
            _train(session, schedule, state)
            training_state.swap(session, state)
            training_state.finish(session, state)


def _begin(session: Session) -> TrainingState:
    state = TrainingState()
    session.book("start")
    cfg = session.cfg
    stage = "before" if cfg.adapter is None else "warm"
    if cfg.adapter is not None and (cfg.eval.start or cfg.retention.on):
        training_state.swap(session, state)
    if cfg.eval.start:
        state.evaluations[stage] = evaluate_stage(session, stage, 0)
    retention.begin(session, stage)
    return state


def _train(session: Session, schedule: Schedule, state: TrainingState) -> None:
    with closing(ExpertData(session.cfg, session.chat)) as data:
        _steps(session, schedule, state, data)


def _steps(session: Session, schedule: Schedule, state: TrainingState, data: ExpertData) -> None:
    every = session.cfg.tracking.checkpoint_every
    while True:
        if schedule.due:
            training_state.swap(session, state)
            stage = step_name(state.steps - 1)
            evaluate_stage_once(session, stage, state.steps)
            retention.measure_once(session, stage, state.steps)
        if schedule.over:
            return
        session.progress.stage(f"supervised step {schedule.next}")
        line = train_step(session, data, state.steps)
        schedule.add(line)
        state.steps += 1
        session.progress.step(state.steps, line)
        if state.steps % every == 0 or schedule.over:
            training_state.checkpoint(session, state)
