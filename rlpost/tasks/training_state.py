"""Where a training run stands, whatever trains it: swaps move it on, checkpoints carry it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rlpost.errors import CheckpointError
from rlpost.record import checkpoint as checkpoints
from rlpost.record.run_dir import RunDir
from rlpost.rollout.pool import PoolSwapReport
from rlpost.tasks.evaluate import evaluate_stage, variants_of
from rlpost.tasks.session import Session, keep_settings, publish, training_settings


@dataclass
class Standing:
    """What a checkpoint carries besides the learner's state."""

    steps: int = 0  # finished iterations, or supervised steps
    version: int = 0  # of the adapter that is live
    evaluations: dict[str, Any] = field(default_factory=dict)
    swap_seconds: list[float] = field(default_factory=list)
    # Means of |engine's - learner's log-prob|: over an iteration's sampled tokens, and over a swap's canary.
    logprob_gaps: list[float] = field(default_factory=list)
    canary_gaps: list[float] = field(default_factory=list)


def go_live(session: Session, version: int) -> PoolSwapReport:
    """Export the policy as `version` and make it live everywhere; SwapError stops the run.

    The adapter is saved after it: what lies in the run directory is an adapter that the engines have taken.
    """
    adapter, canary = session.learner.export(version)
    report = session.pool.swap(adapter, canary)
    adapter.save(session.run_dir.adapter)
    return report


def swap(session: Session, standing: Standing) -> PoolSwapReport:
    """Go live with the next version."""
    report = go_live(session, standing.version + 1)
    standing.version = report.version
    standing.swap_seconds.append(report.seconds)
    standing.canary_gaps.append(report.canary_gap)
    return report


def checkpoint(session: Session, standing: Standing) -> None:
    """Take one of the learner's state and the standing; the last step's line is written before.

    Raises OutputError when it cannot be written, and CheckpointError when the learner writes elsewhere.
    """
    settings = training_settings(session.cfg)
    with session.clock.phase("record"):
        checkpoints.save(session.run_dir, standing.steps, session.learner.save, asdict(standing), settings)
        session.run_dir.write_sittings(session.sittings())  # in case this start is killed


def take_up(session: Session, counted: str, live: bool) -> Standing:
    """Go on from the last whole checkpoint, with the record cut to what it knows of.

    `counted`: the key of metrics.jsonl that counts steps. `live`: whether the engines must have the adapter first.
    The record is cut last: whatever fails before leaves a finished run's results as they are.

    Raises CheckpointError without a checkpoint, for one of another version of rlpost, and when the record lacks steps
    that it has taken.
    """
    found = checkpoints.latest(session.run_dir, training_settings(session.cfg))
    for path in found.passed_over:
        told = f"warning: {path} is damaged; {found.path.name} is taken instead"
        session.console.print(told, style="yellow", emoji=False, markup=False, soft_wrap=True)
    standing = _standing(found)
    _check_lines(session.run_dir, standing, counted)
    with session.clock.phase("start"):
        session.learner.load(found.path)
        if live:
            go_live(session, standing.version)
    session.run_dir.truncate_metrics(standing.steps - 1, key=counted)
    keep_settings(session)
    return standing


def _standing(found: checkpoints.Checkpoint) -> Standing:
    its, known = set(found.progress), {f.name for f in fields(Standing)}
    if its != known:
        raise CheckpointError(
            f"{found.path}\n  reason: another version of rlpost took it: its progress has {sorted(its)},"
            f" this version's has {sorted(known)}\n"
            "  remedy: resume with the version that took it (versions.json names its commit), or start the run anew"
        )
    return Standing(**found.progress)


def _check_lines(run_dir: RunDir, standing: Standing, counted: str) -> None:
    """What was spent, and when to evaluate, is counted by the lines: none may be missing."""
    lines = sum(line.get(counted, math.inf) < standing.steps for line in run_dir.read_metrics())
    if lines != standing.steps:
        raise CheckpointError(
            f"{run_dir.metrics}\n  reason: it has the lines of {lines} steps ({counted}),"
            f" and the checkpoint has taken {standing.steps}\n"
            "  remedy: restore the file from a copy, or start the run anew"
        )


def finish(session: Session, standing: Standing) -> None:
    """Evaluate what was trained, and publish all that was measured."""
    standing.evaluations["after"] = evaluate_stage(session, "after")
    publish(
        session,
        standing.evaluations,
        variants_of(session.cfg),
        standing.steps,
        standing.swap_seconds,
        standing.logprob_gaps,
        standing.canary_gaps,
    )
