"""`task=eval adapter=FOLDER` with kinds of adapters that PEFT alone knows, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.integration.runs import Finished, whole_run
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
    run = _evaluated(save(model, tmp_path / "adapter"), tmp_path / "run")
    assert set(run.summary["eval"]) == {"after"}
    assert 0 < run.summary["canary_gap_mean"] < 1e-4  # against PEFT's own forward; both in fp32


@pytest.mark.slow
def test_saved_whole_parameters_are_evaluated_and_their_swap_proven(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tensors = {
        name: p.detach() + 0.05 * p.detach().std() * torch.randn_like(p)
        for name, p in model.named_parameters()
    }
    Adapter.create({"peft_type": "FULL", "target_modules": "all-linear"}, tensors, 1).save(
        tmp_path / "adapter"
    )
    run = _evaluated(tmp_path / "adapter", tmp_path / "run")
    assert set(run.summary["eval"]) == {"after"}
    assert 0 < run.summary["canary_gap_mean"] < 1e-4


def _evaluated(adapter: Path, folder: Path) -> Finished:
    return whole_run(
        folder,
        "experiment=generalpoints_eval",
        f"adapter={adapter}",
        "dtype=float32",
        "eval.episodes=4",
        "eval.greedy=false",
        "rollout.workers=1",
        "tracking.wandb=disabled",
    )
