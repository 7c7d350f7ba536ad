"""`rollout.lag` for real: engines one update behind the learner, evaluations at its level, and a resume between."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rlpost.weights.adapters import Adapter
from tests.integration.runs import finish, start, whole_run

pytestmark = pytest.mark.integration


def test_engines_one_update_behind_and_a_resume_that_ends_with_the_same_adapter(tmp_path: Path) -> None:
    done = whole_run(
        tmp_path / "run",
        *("experiment=navigation_grpo", "dtype=float32", "rollout.lag=1", "algo.iterations=4"),
        *(
            "rollout.episodes=32",
            "rollout.workers=1",
            "tracking.checkpoint_every=2",
            "tracking.wandb=disabled",
        ),
        *(
            "eval_variants=[absolute]",
            "eval.episodes=8",
            "eval.greedy=false",
            "eval.start=false",
            "eval.every=2",
        ),
    )
    lines = done.lines()
    assert [line["adapter_version"] for line in lines] == [1, 1, 2, 3]
    evaluated = done.episodes("eval-iteration-000001-absolute-sampled")
    assert {turn.policy_version for t in evaluated for turn in t.turns} == {3}
    assert lines[0]["kl_engine_k3"] < 1e-4 < min(line["kl_engine_k3"] for line in lines[2:])
    assert lines[0]["rollout_is/ess"] == pytest.approx(1.0, abs=1e-3)
    assert all(0.5 < line["rollout_is/ess"] < 1.0 for line in lines[2:])
    saved = Adapter.load(done.folder / "adapter")
    assert saved.version == 5
    shutil.rmtree(done.folder / "checkpoints" / "iteration-000004")
    process = start(f"resume={done.folder}")
    output = finish(process)
    assert process.returncode == 0, output
    assert Adapter.load(done.folder / "adapter").fingerprint == saved.fingerprint
    assert [line["adapter_version"] for line in done.lines()] == [1, 1, 2, 3]
