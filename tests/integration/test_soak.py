"""A run that loses three rollout workers and then its learner at random times: it stops, says why, and is resumed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import soak

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

NOTICED_S = 60.0  # Ray reports a death within seconds; the rest is the end of Ray and of the engines


def test_a_run_that_loses_workers_and_its_learner_ends_with_the_adapter_of_one_left_alone(
    tmp_path: Path,
) -> None:
    adapter, span = soak.undisturbed(tmp_path / "undisturbed")
    run, rng = soak.Run(tmp_path / "disturbed"), random.Random(1)
    soak.disturb(run, soak.FAULTS["workers"], rng, 0.6 * span)
    played = run.iterations()
    run.wait(lambda: run.iterations() > played, soak.START_S)
    rank = soak.FAULTS["rank"]
    outcome = soak.outcome_of(run, rank, soak.disturb(run, rank, rng, 0.0), adapter)
    assert outcome.result == "resumed", outcome
    assert "learner rank 0" in outcome.cause
    assert outcome.notice_s < NOTICED_S
    assert not [left for left in outcome.left if left.startswith("process")]
