"""`task=eval adapter=FOLDER` with kinds of adapters that PEFT alone knows, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlpost.weights.models import TINY
from tests.integration.runs import whole_run
from tests.peft_kinds import MERGED, save, trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "case",
    [
        "OFT",
        pytest.param("rank pattern", marks=pytest.mark.slow),
        pytest.param("VeRA", marks=pytest.mark.slow),
    ],
)
def test_a_saved_adapter_of_any_kind_is_evaluated_and_its_swap_proven(case: str, tmp_path: Path) -> None:
    model = trained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), MERGED[case])
    run = whole_run(
        tmp_path / "run",
        "experiment=generalpoints_eval",
        f"adapter={save(model, tmp_path / 'adapter')}",
        "dtype=float32",
        "eval.episodes=4",
        "eval.greedy=false",
        "rollout.workers=1",
        "tracking.wandb=disabled",
    )
    assert set(run.summary["eval"]) == {"after"}
    assert 0 < run.summary["canary_gap_mean"] < 1e-4  # against PEFT's own forward; both in fp32
