"""`task=ppo`: warm start, then rollouts, update, swap, again and again, whatever the algorithm (`algo=`).

collect (adapter v) ─▶ trajectories ─▶ learner.ppo_update ─▶ adapter v+1 ─▶ swap into every engine, proven
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rlpost import checkpoint, metrics
from rlpost.config import Config
from rlpost.evaluate import evaluate_stage, evaluate_stage_once, variants_of
from rlpost.rollout.engine import Sampling
from rlpost.rollout.pool import PoolSwapReport
from rlpost.rollout.refill import Collected, collect
from rlpost.rundir import iteration_name
from rlpost.schedule import Schedule
from rlpost.session import Session, open_session, publish, training_settings
from rlpost.sft import ExpertData, train_step


@dataclass
class Progress:
    """What a checkpoint carries besides the learner's state."""

    iteration: int = 0  # iterations finished
    version: int = 0  # of the adapter that is live
    evaluations: dict[str, Any] = field(default_factory=dict)
    swap_seconds: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # mean |sampling - learner log-prob| of each iteration


def run(cfg: Config) -> None:
    """Train, evaluate and report; `cfg.resume` goes on from the last checkpoint of that run."""
    with open_session(cfg, with_learner=True) as session:
        schedule = Schedule(cfg, cfg.algo.iterations, session.model_folder)
        state = _resume(session) if cfg.resume is not None else _begin(session)
        schedule.replay(session.run_dir.read_metrics(), "iteration")
        _train(session, schedule, state)
        state.evaluations["after"] = evaluate_stage(session, "after")
        session.learner.export(state.version)[0].save(session.run_dir.adapter)
        publish(session, state.evaluations, variants_of(cfg), state.iteration, state.swap_seconds, state.gaps)


def _begin(session: Session) -> Progress:
    """Evaluate the bare model, warm up, make the warm adapter the reference, evaluate again if it is one."""
    state = Progress()
    session.book("start")
    cfg = session.cfg
    if cfg.eval.start:
        began = time.monotonic()
        state.evaluations["before"] = evaluate_stage(session, "before")
        session.progress.closing(time.monotonic() - began)
    _warm_up(session)
    session.learner.set_reference()
    with session.clock.phase("swap"):
        _swap(session, state)
    if cfg.eval.start and (cfg.sft.steps > 0 or cfg.adapter is not None):
        state.evaluations["warm"] = evaluate_stage(session, "warm")
    _checkpoint(session, state)
    return state


def _warm_up(session: Session) -> None:
    if steps := session.cfg.sft.steps:
        data = ExpertData(session.cfg, session.chat)
        for step in range(steps):
            train_step(session, data, step)


def _train(session: Session, schedule: Schedule, state: Progress) -> None:
    while True:
        if schedule.due:
            evaluate_stage_once(session, iteration_name(state.iteration - 1))
        if schedule.over:
            return
        schedule.add(_iterate(session, state))


def _iterate(session: Session, state: Progress) -> dict[str, Any]:
    """One iteration; returns its line of metrics.jsonl."""
    cfg, clock, iteration = session.cfg, session.clock, state.iteration
    session.progress.stage(f"iteration {iteration + 1}/{cfg.algo.iterations}")
    with clock.phase("rollout"):
        sampling = Sampling(cfg.rollout.temperature, cfg.rollout.max_new_tokens)
        collected = collect(lambda specs: session.pool.collect(specs, sampling), cfg, iteration)
    with clock.phase("learner"):
        learnt = session.learner.ppo_update(collected.batch, iteration)
    clock.split(
        "learner", {"logprobs": learnt.pop("seconds_logprobs"), "update": learnt.pop("seconds_update")}
    )
    with clock.phase("swap"):
        swap = _swap(session, state)
    state.iteration += 1
    if (
        "logprob_gap" in learnt
    ):  # absent while only the critic learns and the engine's log-probs are taken as they are
        state.gaps.append(learnt["logprob_gap"])
    with clock.phase("record"):
        session.run_dir.write_trajectories(iteration_name(iteration), collected.played)
        if state.iteration % cfg.tracking.checkpoint_every == 0 or state.iteration == cfg.algo.iterations:
            _checkpoint(session, state)
    return _report(session, state, collected, {**learnt, **swap.metrics()})


def _report(
    session: Session, state: Progress, collected: Collected, found: dict[str, float]
) -> dict[str, Any]:
    numbers = {
        "iteration": state.iteration - 1,
        "adapter_version": collected.played[0].adapter_version,
        **metrics.rollout_metrics(collected.played),
        **collected.metrics,
        **found,
        **session.clock.lap(),
    }
    session.run_dir.append_metrics({"stage": "ppo", **numbers})
    session.tracker.log(numbers, step=state.iteration - 1)
    session.progress.iteration(state.iteration, numbers)
    return numbers


def _swap(session: Session, state: Progress) -> PoolSwapReport:
    """Export the policy as the next version and make it live everywhere; SwapError stops the run."""
    adapter, canary = session.learner.export(state.version + 1)
    report = session.pool.swap(adapter, canary)
    state.version = report.version
    state.swap_seconds.append(report.seconds)
    adapter.save(session.run_dir.adapter)
    return report


def _checkpoint(session: Session, state: Progress) -> None:
    progress = {name: getattr(state, name) for name in Progress.__dataclass_fields__}
    checkpoint.save(
        session.run_dir, state.iteration, session.learner.save, progress, training_settings(session.cfg)
    )


def _resume(session: Session) -> Progress:
    """Take up the last whole checkpoint: learner, adapter in the engines, and the record up to there."""
    found = checkpoint.latest(session.run_dir, training_settings(session.cfg))
    state = Progress(**found.progress)
    session.learner.load(found.path)
    session.run_dir.truncate_metrics(state.iteration - 1)
    adapter, canary = session.learner.export(state.version)
    session.pool.swap(adapter, canary)
    return state
