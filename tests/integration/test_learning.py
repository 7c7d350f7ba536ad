"""That training in the shipped setting makes the policy better, by a margin that chance does not reach."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.integration.runs import whole_run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3000)]

SETTINGS = (
    "experiment=generalpoints_ppo",
    "algo.iterations=11",
    "algo.critic_warmup=1",
    "eval.start=false",
    "eval.episodes=8",
    "eval.greedy=false",
    "learner.threads=1",  # two wait for one another, for long where other tests run beside them
    "tracking.wandb=disabled",
)


def test_the_shipped_setting_learns(tmp_path: Path) -> None:
    """Success of the episodes that it trains on, which are new deals in every iteration.

    768 episodes at either end: the standard error of the difference is 2.4 points. Measured, with float32 and seed 0,
    was a rise from 23% to 36%, more than three standard errors above what is asked for.
    """
    run = whole_run(tmp_path / "run", *SETTINGS)
    success = [line["success"] for line in run.lines()]
    assert statistics.fmean(success[-3:]) > statistics.fmean(success[:3]) + 0.03, success
