"""QLoRA for real: vLLM on a base in NF4, and a short run with everything that is done with its adapter afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlpost.config.schema import BaseKind
from rlpost.errors import SwapError
from rlpost.kernels.nf4 import round_trip
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.tasks.canary import plain_peft_canary
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import linear_layers
from tests.integration.runs import finish, start, whole_run
from tests.peft_kinds import save, trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TIGHT = 2e-5  # log-prob difference of two fp32 implementations
IDS = tuple(range(10, 60))


def dequantized(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name in linear_layers(folder):
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight)
    return model


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    table = model(torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)
    return table[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])]


@dataclass
class Started:
    engine: VllmEngine
    folder: Path


@pytest.fixture(scope="module")
def started(random_model: Path) -> Iterator[Started]:
    settings = EngineSettings(
        random_model, max_model_len=128, max_num_seqs=8, kv_cache_gib=0.1, base=BaseKind.nf4.value
    )
    engine = VllmEngine(settings)
    yield Started(engine, random_model)
    engine._engine.engine_core.shutdown()  # a run ends the process instead


def test_the_engine_serves_the_rounded_base_and_updates_over_it(started: Started, tmp_path: Path) -> None:
    """The witness is transformers with PEFT.

    A learner on the stored base with the same adapter is told by its canary, and the version before is live again.
    """
    base = logprobs(dequantized(started.folder))
    torch.testing.assert_close(torch.tensor(started.engine.logprobs(IDS)), base, rtol=0, atol=TIGHT)
    folder = save(trained(dequantized(started.folder), {"peft_type": "LORA", "r": 4}), tmp_path / "adapter")
    plain = Adapter.load(folder)
    adapter = Adapter.create(plain.config, plain.tensors, 1, BaseKind.nf4)
    right, wrong = (plain_peft_canary(started.folder, folder, IDS, kind) for kind in reversed(BaseKind))
    for tried in (wrong, right, wrong):
        if tried is wrong:
            with pytest.raises(SwapError, match="On the canary the engine's log-probs differ"):
                started.engine.swap(adapter, wrong, max_gap=0.01)
            continue
        assert started.engine.swap(adapter, right, max_gap=0.01).canary_gap < TIGHT
    expected = logprobs(PeftModel.from_pretrained(dequantized(started.folder), folder).eval())
    torch.testing.assert_close(torch.tensor(started.engine.logprobs(IDS)), expected, rtol=0, atol=TIGHT)


def test_an_adapter_of_the_stored_base_is_refused_in_the_engine(started: Started, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(started.folder, dtype=torch.float32)
    plain = Adapter.load(save(trained(base, {"peft_type": "LORA", "r": 4}), tmp_path / "adapter"))
    of_stored = Adapter.create(plain.config, plain.tensors, 2, BaseKind.stored)
    with pytest.raises(SwapError, match=r"trained on lora\.base=stored, and here the base is nf4"):
        started.engine.swap(of_stored, None, max_gap=0.01)


def test_a_run_on_a_base_in_nf4(tmp_path: Path) -> None:
    """Its engines agree with its learner as on a plain base. `task=eval` asks for the base that the adapter was trained
    on, and proves the swap by PEFT's log-probs."""
    common = ("dtype=float32", "eval.greedy=false", "eval.episodes=4", "tracking.wandb=disabled")
    run = whole_run(
        tmp_path / "run",
        "experiment=generalpoints_ppo",
        "lora.base=nf4",
        *("algo.iterations=2", "algo.critic_warmup=0", "sft.steps=2", "sft.batch_size=8"),
        *("rollout.workers=1", "rollout.episodes=8", "eval_variants=[faces_10]", *common),
    )
    assert 0 < run.summary["canary_gap_mean"] < 1e-4
    assert run.summary["logprob_gap_mean"] < 1e-3
    adapter = Adapter.load(run.folder / "adapter")
    assert adapter.base is BaseKind.nf4
    moved = sum(float(t.abs().sum()) for name, t in adapter.tensors.items() if "lora_B" in name)
    assert moved > 0
    words = ("experiment=generalpoints_eval", f"adapter={run.folder / 'adapter'}", "rollout.workers=1")
    refused = start(*words, *common, f"output_dir={tmp_path / 'refused'}")
    assert "Give lora.base=nf4." in " ".join(finish(refused).split())
    assert refused.returncode != 0
    evaluated = whole_run(tmp_path / "eval", *words, "lora.base=nf4", *common)
    assert 0 < evaluated.summary["canary_gap_mean"] < 1e-4
