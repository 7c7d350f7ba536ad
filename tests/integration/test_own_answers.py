"""Learning from one's own answers for real: rft on the current policy's, dpo on those of the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost.weights.adapters import Adapter
from tests.integration.runs import whole_run

pytestmark = pytest.mark.integration

SHORT = (
    *("experiment=navigation_grpo", "algo.iterations=2", "rollout.episodes=32", "rollout.workers=1"),
    *("eval_variants=[absolute]", "eval.episodes=8", "eval.greedy=false", "eval.start=false"),
    "tracking.wandb=disabled",
)


def test_rft_learns_from_its_right_answers(tmp_path: Path) -> None:
    done = whole_run(tmp_path / "run", *SHORT, "algo=rft")
    lines = done.lines()
    assert all(0 < line["kept_episodes"] <= line["success"] for line in lines)
    assert all(line["logprob_gap"] < 0.1 and line["policy_loss"] > 0 for line in lines)
    assert [line["adapter_version"] for line in lines] == [1, 2]


def test_dpo_on_the_starts_answers(tmp_path: Path) -> None:
    """The start plays both iterations, the policy in between the evaluation; its preferences are learnt."""
    done = whole_run(tmp_path / "run", *SHORT, "algo=dpo", "rollout.policy=start", "eval.every=1")
    first, second = done.lines()
    assert first["policy_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert second["dpo_margin"] != 0
    played = [done.episodes(f"iteration-00000{k}") for k in range(2)]
    assert {turn.policy_version for each in played for t in each for turn in t.turns} == {1}
    assert not {t.instance for t in played[0]} >= {t.instance for t in played[1]}
    evaluated = done.episodes("eval-iteration-000000-absolute-sampled")
    assert {turn.policy_version for t in evaluated for turn in t.turns} == {2}
    versions = [Adapter.load(done.folder / name).version for name in ("start_policy", "adapter")]
    assert versions == [1, 3]
