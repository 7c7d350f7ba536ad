"""Random small models of many families: learner, adapter, swap, engine, against PEFT's own forward in float32."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import SwapError
from rlpost.learner.model import actor_critic
from rlpost.learner.model.packing import Row, collate, plan_micro_batches, slot_starts
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter
from tests.families import FAMILIES, VOCAB, targets, write_family
from tests.integration.family_engine import swap_and_sample, swap_with_heads_in_another_order

pytestmark = pytest.mark.integration

BOUND = 1e-3  # mean |difference| of log-probs
FAST = (
    "llama",
    "gemma2",
    "gpt_neox",
)  # fused layers; caps and a window; other names, by transformers in vLLM
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
IDS = tuple(torch.randint(4, VOCAB, (48,), generator=torch.Generator().manual_seed(9)).tolist())
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def engines() -> Iterator[ProcessPoolExecutor]:
    """A process in which engines start one after another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@dataclass(frozen=True)
class Trained:
    adapter: Adapter
    canary: Canary  # by the learner
    peft: Any  # PEFT's model of the saved adapter, with transformers' own attention


def trained(folder: Path, name: str) -> Trained:
    """A policy of the learner's that differs much from its base."""
    lora = LoraConfig(rank=4, alpha=8.0, target_modules=targets(name))
    model = actor_critic.build(write_family(folder, name), Dtype.float32, lora, 0, (POLICY,), None)
    model.fuse()
    torch.manual_seed(1)
    for parameter_name, parameter in model.weights.named(POLICY).items():
        if "lora_B" in parameter_name:
            parameter.data.normal_(0, 0.1)
    adapter = Adapter.create(model.weights.config, model.weights.tensors(POLICY), 1)
    rows = [Row(IDS, (0,) + (1,) * (len(IDS) - 1))]
    [[groups]] = plan_micro_batches(rows, [0], len(IDS), 1)
    with torch.no_grad():
        logprobs_N = model(collate(rows, slot_starts(rows), groups), (POLICY,), 1.0).logprobs_N
    adapter.save(folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    peft = PeftModel.from_pretrained(base, folder / "adapter").eval()
    return Trained(adapter, Canary(IDS, tuple(logprobs_N.tolist())), peft)


@torch.no_grad()
def logprobs(model: Any, token_ids: tuple[int, ...]) -> torch.Tensor:
    logits = model(torch.tensor([token_ids])).logits[0, :-1].double()
    return logits.log_softmax(-1)[torch.arange(len(token_ids) - 1), torch.tensor(token_ids[1:])]


def gap(mine: Any, theirs: torch.Tensor) -> float:
    return float((torch.as_tensor(mine, dtype=torch.float64) - theirs).abs().mean())


@pytest.mark.parametrize("name", CASES)
def test_what_the_learner_trains_is_what_the_engine_samples(
    name: str, engines: ProcessPoolExecutor, tmp_path: Path
) -> None:
    policy = trained(tmp_path, name)
    with policy.peft.disable_adapter():
        bare = logprobs(policy.peft, IDS)
    expected = logprobs(policy.peft, IDS)
    assert gap(bare, expected) > 100 * BOUND
    assert gap(policy.canary.logprobs, expected) < BOUND
    report, scores, answer = engines.submit(
        swap_and_sample, tmp_path, policy.adapter, policy.canary, BOUND
    ).result(DEADLINE_S)
    assert report.modules_bound == report.modules_expected == len(policy.adapter.modules)
    assert gap(scores, expected) < BOUND
    sampled = logprobs(policy.peft, (*IDS[:20], *answer.token_ids))[19:]
    assert len(answer.token_ids) > 1
    assert gap(answer.logprobs, sampled) < BOUND


@pytest.mark.parametrize(
    ("unnoticed", "reason"),
    [(False, "2 of 8 layers do not hold the checkpoint's values"), (True, "On the canary")],
    ids=["seen by the writer", "seen on the canary"],
)
def test_rows_in_another_order_than_the_checkpoint_s_are_refused(
    unnoticed: bool, reason: str, engines: ProcessPoolExecutor, tmp_path: Path
) -> None:
    policy = trained(tmp_path, "gpt_neox")
    asked = engines.submit(
        swap_with_heads_in_another_order, tmp_path, policy.adapter, policy.canary, BOUND, unnoticed
    )
    with pytest.raises(SwapError, match=f"Version 1 was not taken: {reason}.*Live is the bare base"):
        asked.result(DEADLINE_S)
