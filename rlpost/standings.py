"""Where a training run stands, whatever trains it: swaps move it on, checkpoints carry it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rlpost import checkpoint as checkpoints
from rlpost.evaluate import evaluate_stage, variants_of
from rlpost.rollout.pool import PoolSwapReport
from rlpost.session import Session, publish, training_settings


@dataclass
class Standing:
    """What a checkpoint carries besides the learner's state."""

    steps: int = 0  # finished iterations, or supervised steps
    version: int = 0  # of the adapter that is live
    evaluations: dict[str, Any] = field(default_factory=dict)
    swap_seconds: list[float] = field(default_factory=list)
    gaps: list[float] = field(
        default_factory=list
    )  # mean |engine's - learner's log-prob|, of episodes or canaries


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
    return report


def checkpoint(session: Session, standing: Standing) -> None:
    """Take one of the learner's state and the standing; OutputError when it cannot be written."""
    settings = training_settings(session.cfg)
    checkpoints.save(session.run_dir, standing.steps, session.learner.save, asdict(standing), settings)


def take_up(session: Session, counted: str) -> Standing:
    """Go on from the last whole checkpoint, with the record cut to what it knows of; CheckpointError without one.

    `counted`: the key of metrics.jsonl that counts steps.
    """
    found = checkpoints.latest(session.run_dir, training_settings(session.cfg))
    session.learner.load(found.path)
    session.run_dir.truncate_metrics(found.iteration - 1, key=counted)
    return Standing(**found.progress)


def finish(session: Session, standing: Standing) -> None:
    """Evaluate what was trained, and publish all that was measured."""
    standing.evaluations["after"] = evaluate_stage(session, "after")
    publish(
        session,
        standing.evaluations,
        variants_of(session.cfg),
        standing.steps,
        standing.swap_seconds,
        standing.gaps,
    )
