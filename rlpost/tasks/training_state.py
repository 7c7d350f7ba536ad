"""Training state shared by task=rl and task=sft. Swaps change it, checkpoints contain it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlpost.config.schema import RolloutPolicy
from rlpost.errors import CheckpointError
from rlpost.record import checkpoint as checkpoints
from rlpost.record.run_dir import RunDir
from rlpost.record.shares import Share
from rlpost.rollout.pool import PoolSwapReport
from rlpost.tasks import retention, spectrum, start_policy
from rlpost.tasks.evaluate import axis, evaluate_stage, variants_of
from rlpost.tasks.session import Session, keep_settings, publish, training_settings
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter


@dataclass
class TrainingState:
    """The content of a checkpoint besides the learner's own state."""

    steps: int = 0  # finished iterations or supervised steps
    version: int = (
        0  # version of the current policy; with rollout.policy=start, of its last one that the engines had
    )
    evaluations: dict[str, Any] = field(default_factory=dict)
    swap_seconds: list[float] = field(default_factory=list)
    # Mean |engine's - learner's log-prob| over an iteration's sampled tokens, and over a swap's canary.
    logprob_gaps: list[float] = field(default_factory=list)
    canary_gaps: list[float] = field(default_factory=list)


def sync_weights(session: Session, version: int) -> PoolSwapReport:
    """Export the policy as `version`, and swap the one of `rollout.lag` versions before into every engine."""
    session.policies.add(*session.learner.export(version))
    return _serve(session, *session.policies.oldest)


def _serve(session: Session, adapter: Adapter, canary: Canary) -> PoolSwapReport:
    """Swap a policy into every engine. A SwapError stops the run.

    The adapter is saved afterwards, so the run directory contains only adapters that the engines have accepted.
    """
    report = session.pool.swap(adapter, canary)
    adapter.save(session.run_dir.adapter)
    return report


def swap(session: Session, state: TrainingState) -> PoolSwapReport:
    """Swap the policy into the engines as the next version; with `rollout.lag` an earlier version."""
    version = state.version + 1
    report = sync_weights(session, version)
    state.version = version
    _note(state, report)
    return report


def _note(state: TrainingState, report: PoolSwapReport) -> None:
    state.swap_seconds.append(report.seconds)
    state.canary_gaps.append(report.canary_gap)


def make_current_live(session: Session, state: TrainingState) -> None:
    """Swap the current policy into the engines, if another one plays training's episodes. Else they have it."""
    rollout = session.cfg.rollout
    if rollout.policy is RolloutPolicy.start:
        swap(session, state)
    elif rollout.lag > 0:
        _note(state, _serve(session, *session.policies.newest))


def _make_player_live(session: Session) -> None:
    """Swap the policy back that plays training's episodes."""
    if session.cfg.rollout.policy is RolloutPolicy.start:
        start_policy.go_live(session)
    else:
        _serve(session, *session.policies.oldest)


@contextmanager
def current_live(session: Session, state: TrainingState) -> Iterator[None]:
    """A context in which the engines serve the current policy, whichever plays training's episodes."""
    if session.cfg.rollout.plays_current:
        yield
        return
    with session.clock.phase("evaluation"):  # not part of what training costs (rlpost/record/compute.py)
        make_current_live(session, state)
    yield
    with session.clock.phase("evaluation"):
        _make_player_live(session)


def checkpoint(session: Session, state: TrainingState) -> None:
    """Save the learner's state and `state`. The line of the last step has been written before.

    Raises OutputError if it cannot be written, and CheckpointError if the learner writes to another disk.
    """
    settings = training_settings(session.cfg)

    def write(folder: Path) -> list[Share]:
        first, *others = session.learner.save(folder)
        return [first | session.policies.save(folder), *others]

    with session.clock.phase("record"):
        checkpoints.save(session.run_dir, state.steps, write, asdict(state), settings)
        session.run_dir.write_sittings(session.sittings())  # in case this start is killed


def resume(session: Session, step_key: str, live: bool) -> TrainingState:
    """Continue from the last complete checkpoint, with the record cut back to that point.

    `step_key`: the key of metrics.jsonl that counts steps. `live`: whether the engines must get a policy first: the one
    that plays training's episodes. The record is cut last, so any earlier failure leaves a finished
    run's results unchanged.

    Raises CheckpointError if there is no checkpoint, if it is of another version of rlpost, and if the record lacks
    steps that it counts.
    """
    latest = checkpoints.latest(session.run_dir, training_settings(session.cfg))
    for path in latest.passed_over:
        told = f"warning: {path} is damaged; {latest.path.name} is taken instead"
        session.console.print(told, style="yellow", emoji=False, markup=False, soft_wrap=True)
    state = state_in(latest)
    _check_lines(session.run_dir, state, step_key)
    with session.clock.phase("start"):
        session.learner.load(latest.path)
        session.policies.load(latest.path)
        if live and session.cfg.rollout.policy is RolloutPolicy.start:
            start_policy.go_live(session)
        elif live:
            sync_weights(session, state.version)
    session.run_dir.truncate_metrics(state.steps - 1, key=step_key)
    keep_settings(session)
    return state


def state_in(saved: checkpoints.Checkpoint) -> TrainingState:
    """The state that a checkpoint holds. Raises CheckpointError if another version of rlpost took it."""
    its, known = set(saved.progress), {f.name for f in fields(TrainingState)}
    if its != known:
        raise CheckpointError(
            f"{saved.path}\n  reason: another version of rlpost took it: its progress has {sorted(its)},"
            f" this version's has {sorted(known)}\n"
            "  remedy: resume with the version that took it (versions.json names its commit), or start the run anew"
        )
    return TrainingState(**saved.progress)


def _check_lines(run_dir: RunDir, state: TrainingState, step_key: str) -> None:
    """Raise CheckpointError if a line is missing: compute and evaluations are counted by the lines."""
    lines = sum(line.get(step_key, math.inf) < state.steps for line in run_dir.read_metrics())
    if lines != state.steps:
        raise CheckpointError(
            f"{run_dir.metrics}\n  reason: it has the lines of {lines} steps ({step_key}),"
            f" and the checkpoint has taken {state.steps}\n"
            "  remedy: restore the file from a copy, or start the run anew"
        )


def finish(session: Session, state: TrainingState) -> None:
    """Measure the update, evaluate the trained policy, and publish all measurements."""
    spectrum.at_the_end(session, axis(session.cfg), state.steps)
    state.evaluations["after"] = evaluate_stage(session, "after", state.steps)
    retention.measure(session, "after", state.steps)
    publish(
        session,
        state.evaluations,
        variants_of(session.cfg),
        state.steps,
        state.swap_seconds,
        state.logprob_gaps,
        state.canary_gaps,
    )
