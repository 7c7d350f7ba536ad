"""Every kind of adapter that a run trains: gradients, isolation of the roles, files, and a bandit that it solves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn
from transformers import AutoModelForCausalLM

from rlpost.algorithms import roles
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.adapter_kinds import REFUSED, TABLE
from rlpost.config.schema import AdapterKind, Dtype
from rlpost.learner import update
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import weight_update
from tests.adapter_kinds import ADAPTERS, small
from tests.learner_data import examples_of, plain_attention, random_episodes, small_config, write_small_model
from tests.unit.learner.bandit import AdamBackend, answers, solve

ROWS = [Row(t.token_ids, t.loss_mask) for t in random_episodes(3)]
LEARNING_RATE = 3e-3  # LoRA's for the bandit
ITERATIONS = 25
NEAR_THE_BASE = {
    "vblora": 0.1,
    "unilora": 0.1,
}  # these start with small random values, the others at the base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _batch() -> MicroBatch:
    return collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in range(len(ROWS))])


def _logprobs(model: ActorCritic, role: str = POLICY) -> torch.Tensor:
    with torch.no_grad():
        return model(_batch(), (role,), 1.0).of(role)


def _reached(model: ActorCritic, role: str) -> set[str]:
    """The parameters that get a gradient from a pass of `role`."""
    model.zero_grad()
    model(_batch(), (role,), 1.0).of(role).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def _shake(model: ActorCritic, role: str, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(len(role))
    for parameter in model.parameters_of(role):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=by)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_each_role_has_weights_of_its_own(kind: AdapterKind, folder: Path) -> None:
    """It starts at the base, learns alone, and the reference becomes the policy as it is."""
    model = actor_critic.build(folder, Dtype.float32, small(kind), 0, roles.ROLES, None)
    with model.weights.using(None), torch.no_grad():
        base = answers_of_the_base(model)
    torch.testing.assert_close(answers(model), base, rtol=0, atol=NEAR_THE_BASE.get(kind.name, 1e-4))
    _shake(model, POLICY)
    _shake(model, CRITIC)
    for role in (POLICY, CRITIC):
        own = {id(p) for p in model.parameters_of(role) if p.requires_grad}
        assert _reached(model, role) == {name for name, p in model.named_parameters() if id(p) in own}
    assert not any(p.requires_grad for p in model.parameters_of(REFERENCE))
    policy = _logprobs(model)
    assert (_logprobs(model, REFERENCE) - policy).abs().max() > 1e-3
    model.weights.freeze_reference()
    assert torch.equal(_logprobs(model, REFERENCE), policy)
    model.checkpoint_activations()
    torch.testing.assert_close(_logprobs(model), policy)


def answers_of_the_base(model: ActorCritic) -> torch.Tensor:
    from tests.unit.learner.bandit import PROMPT

    with plain_attention(model.weights.base) as base:
        return torch.log_softmax(base(torch.tensor([PROMPT])).logits[0, -1], dim=-1)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_two_steps_change_the_policy_and_its_file_merges_to_the_same(
    kind: AdapterKind, folder: Path, tmp_path: Path
) -> None:
    """PEFT on the exported file, and the merged weights of a swap, are the policy that was trained."""
    cfg = small_config()
    cfg.sft.learning_rate, cfg.sft.warmup_steps = LEARNING_RATE * TABLE[kind].learning_rate, 1
    model = actor_critic.build(folder, Dtype.float32, small(kind), 0, (POLICY,), None)
    start = _logprobs(model)
    for step in range(2):
        update.sft_step(AdamBackend(model, cfg), examples_of(random_episodes(3)), cfg, step)
    trained = _logprobs(model)
    assert (trained - start).abs().max() > 1e-3
    adapter = Adapter.create(model.weights.config, model.weights.tensors(POLICY), 1)
    adapter.save(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in weight_update(Adapter.load(tmp_path / "adapter"), BaseWeights(folder)):
        plain.get_parameter(name).data.copy_(weight)
    pefts = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path / "adapter"
    ).eval()
    for other in (plain, pefts):
        torch.testing.assert_close(_plain_logprobs(other), trained, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def _plain_logprobs(model: nn.Module) -> torch.Tensor:
    """Row by row with full logits, in the order of the batch's loss tokens."""
    found = []
    for row in ROWS:
        table = torch.log_softmax(model(torch.tensor([row.token_ids])).logits[0], dim=-1)
        found += [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    return torch.stack(found)[_batch().slots_N]


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(x)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_are_finite_differences(kind: AdapterKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer in float64, in a random direction of all trained numbers. DoRA holds its norm constant (section 4.3).

    PEFT computes parts of DEFT and RandLoRA in float32 all the same, so their step is not small.
    """
    torch.manual_seed(0)
    settings = TABLE[kind].peft_settings(small(kind))
    model = get_peft_model(_Layer(), PeftConfig.from_peft_type(target_modules=["down_proj"], **settings))
    model = model.eval().double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    inputs, weights = torch.randn(5, 32).double(), torch.randn(5, 16).double()
    norm, held = DoraLinearLayer.get_weight_norm, list[torch.Tensor]()

    def constant(layer: DoraLinearLayer, *given: Any, **named: Any) -> torch.Tensor:
        held.append(norm(layer, *given, **named))
        return held[0]

    monkeypatch.setattr(DoraLinearLayer, "get_weight_norm", constant)

    def loss() -> torch.Tensor:
        return (model(inputs) * weights).sum()

    loss().backward()
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
    step, values = (1e-3 if kind in (AdapterKind.deft, AdapterKind.randlora) else 1e-6), []
    for sign in (1, -2):
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(d, alpha=sign * step)
        values.append(float(loss().detach()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=5e-3, abs=2e-3)
    assert abs(slope) > 0.05


@pytest.mark.parametrize("kind", [*ADAPTERS, AdapterKind.full])
def test_a_bandit_is_solved(kind: AdapterKind, folder: Path) -> None:
    """By GRPO with the learning rate that the table gives, in multiples of LoRA's."""
    model = actor_critic.build(folder, Dtype.float32, small(kind), 0, (POLICY,), None)
    more = 3 if kind is AdapterKind.tinylora else 1  # 64 numbers for all modules
    found = solve(model, LEARNING_RATE * TABLE[kind].learning_rate, more * ITERATIONS)
    assert found[0] < 0.2
    assert found[-1] > 0.9, found


def test_bfloat16_base_keeps_float32_adapters(folder: Path) -> None:
    for kind in ADAPTERS:
        model, wide = (
            actor_critic.build(folder, dtype, small(kind), 0, (POLICY,), None)
            for dtype in (Dtype.bfloat16, Dtype.float32)
        )
        _shake(model, POLICY, by=0.02)
        wide.weights.load(POLICY, model.weights.tensors(POLICY))
        assert {p.dtype for p in model.parameters_of(POLICY)} == {torch.float32}, kind
        found = _logprobs(model)
        assert found.dtype == torch.float32
        assert (found - _logprobs(wide)).abs().mean() < 0.1, kind


def test_every_kind_of_peft_is_trained_or_refused_with_a_reason() -> None:
    trained = {row.peft_type for row in TABLE.values()}
    assert set(TABLE) == set(AdapterKind)
    assert not trained & {name.upper() for name in REFUSED}
    for peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
        assert peft_type.value in trained or peft_type.value.lower() in REFUSED, peft_type


def test_sizes_and_scalings_are_settings_of_peft() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for row in (TABLE[kind] for kind in ADAPTERS):
        known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[row.peft_type])}
        more = row.defaults.get("lora.settings", {})
        assert {row.rank, row.alpha, *row.settings, *more} - {None} <= known
