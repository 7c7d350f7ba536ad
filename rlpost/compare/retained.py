"""Reads what a cell retained (docs/retention.md) from its run directory.

lines of metrics.jsonl ─▶ text, KL    trajectories/retention-* ─▶ Evaluation    both ─▶ Retained, one a share
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rlpost.compare.design.types import Evaluation, Retained
from rlpost.record import retention as record
from rlpost.record.run_dir import RunDir


def retained(
    run_dir: RunDir, shares: Mapping[str, float], evaluation: Callable[[Path], Evaluation]
) -> tuple[Retained, ...]:
    """What the run measured at its start (share 0) and at the stages of `shares`; empty if it measured nothing.

    `evaluation` reads a file of episodes; what it raises is not caught.
    """
    found = record.measured(run_dir.read_metrics())
    start = record.start_of(found)
    at = ({} if start is None else {start.stage: 0.0}) | dict(shares)
    by_stage = {each.stage: each for each in found}

    def episodes(stage: str, variant: str) -> Evaluation:
        return evaluation(run_dir.trajectories_file(record.episodes_name(stage, variant)))

    return tuple(
        Retained(
            share,
            {variant: episodes(stage, variant) for variant in by_stage[stage].success},
            by_stage[stage].text,
            by_stage[stage].kl,
        )
        for stage, share in at.items()
        if stage in by_stage
    )
