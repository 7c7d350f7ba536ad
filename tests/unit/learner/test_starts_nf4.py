"""Starts of an adapter over a base in NF4: those of the dequantized model, and LoftQ, which reads the stored one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlpost.algorithms.roles import POLICY, REFERENCE, ROLES
from rlpost.config.adapter_starts import STARTS
from rlpost.config.schema import AdapterKind, AdapterStart, BaseKind, Dtype, LoraConfig
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights, Nf4Weights
from rlpost.weights.update import weight_update
from tests.learner_data import examples_of, random_episodes, write_rounded, write_small_model

EXAMPLES = examples_of(random_episodes(6))
ROWS = [Row(e.token_ids, e.loss_mask) for e in EXAMPLES[:4]]
BATCH = collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in range(len(ROWS))])
ALL = list(AdapterStart)
OF_THE_BASE = [start for start in ALL if start is not AdapterStart.loftq]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="module")
def rounded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded(folder, tmp_path_factory.mktemp("rounded"))


@pytest.fixture
def build(folder: Path) -> Callable[..., ActorCritic]:
    def built(
        start: AdapterStart,
        kind: AdapterKind = AdapterKind.lora,
        base: BaseKind = BaseKind.nf4,
        on: Path = folder,
        roles: tuple[str, ...] = ROLES,
        **settings: Any,
    ) -> ActorCritic:
        lora = replace(LoraConfig(rank=4, alpha=10.0, kind=kind, start=start, base=base), **settings)
        return actor_critic.build(on, Dtype.float32, lora, 0, roles, None, EXAMPLES)

    return built


def _train(model: ActorCritic) -> None:
    optimizer = torch.optim.AdamW(model.parameters_of(POLICY), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        (-model(BATCH, (POLICY,), 1.0).of(POLICY).mean()).backward()
        optimizer.step()


def _export(model: ActorCritic) -> Adapter:
    return Adapter.create(*model.weights.export(), version=1, base=BaseKind.nf4)


def _logprobs(model: ActorCritic, role: str) -> Tensor:
    """Of the first row's tokens in the loss. REFERENCE is the bare base if the model has no reference."""
    with torch.no_grad():
        found = model(BATCH, (role,), 1.0).of(role)
    assert isinstance(found, Tensor)
    return found[torch.argsort(BATCH.slots_N)][: sum(ROWS[0].mask)]


def _chosen(logits: Tensor) -> Tensor:
    table = logits.log_softmax(-1)
    [row] = ROWS[:1]
    return torch.stack([table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted])


@torch.no_grad()
def _merged_logprobs(folder: Path, adapter: Adapter | None) -> Tensor:
    """Of plain transformers with the weights that an engine has."""
    model, weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), Nf4Weights(folder)
    for values in (weights, *([] if adapter is None else [dict(weight_update(adapter, weights))])):
        model.load_state_dict(dict(values), strict=False)
    return _chosen(model(torch.tensor([list(ROWS[0].token_ids)])).logits[0])


@pytest.mark.parametrize("start", OF_THE_BASE)
def test_the_first_values_are_those_on_the_dequantized_model(
    build: Callable[..., ActorCritic], rounded: Path, start: AdapterStart
) -> None:
    ours, theirs = build(start), build(start, base=BaseKind.stored, on=rounded)
    for role in (POLICY, *ours.weights.frozen):
        found, expected = ours.weights.tensors(role), theirs.weights.tensors(role)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("start", OF_THE_BASE)
def test_every_role_starts_at_the_rounded_base(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart
) -> None:
    model, expected = build(start), _merged_logprobs(folder, None)
    for role in (POLICY, REFERENCE):
        torch.testing.assert_close(_logprobs(model, role), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", ALL)
def test_the_export_over_the_rounded_weights_is_the_learners_policy(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart
) -> None:
    """Here by the fused layers; the other tests are without."""
    model = build(start)
    model.fuse()
    assert model.fused
    _train(model)
    adapter = _export(model)
    assert adapter.config["r"] == (8 if STARTS[start].changes_base else 4)
    assert adapter.config["init_lora_weights"] is True
    found = _logprobs(model, POLICY)
    torch.testing.assert_close(found, _merged_logprobs(folder, adapter), rtol=1e-4, atol=1e-3)
    assert (found - _merged_logprobs(folder, None)).abs().max() > 0.05


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.rslora])
def test_loftq_is_the_nearest_adapter_to_what_rounding_lost(
    build: Callable[..., ActorCritic], folder: Path, kind: AdapterKind
) -> None:
    """Its distance is that of the singular values left out (Eckart and Young), and all roles have it."""
    model = build(AdapterStart.loftq, kind)
    update = dict(weight_update(_export(model), Nf4Weights(folder)))
    stored, nf4 = BaseWeights(folder), Nf4Weights(folder)
    assert len(update) == 14
    for name, weight in update.items():
        lost = (stored[name] - nf4[name]).double()
        values = torch.linalg.svdvals(lost)
        distance = (weight.double() - stored[name]).norm()
        assert distance.item() == pytest.approx(values[4:].norm().item(), rel=1e-3)
        assert distance < 0.9 * lost.norm()
    for role in (POLICY, REFERENCE):
        torch.testing.assert_close(
            _logprobs(model, role), _merged_logprobs(folder, _export(model)), rtol=0, atol=1e-3
        )


def test_loftq_brings_the_policy_near_the_stored_models(
    build: Callable[..., ActorCritic], folder: Path
) -> None:
    """The nearer the higher the rank. The bare base stays NF4."""
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = _chosen(stored(torch.tensor([list(ROWS[0].token_ids)])).logits[0])
    bare = _merged_logprobs(folder, None)
    full, part = (build(AdapterStart.loftq, rank=rank, roles=(POLICY,)) for rank in (16, 8))
    torch.testing.assert_close(_logprobs(part, REFERENCE), bare, rtol=0, atol=1e-4)
    gaps = [
        (each - expected).abs().mean() for each in (bare, _logprobs(part, POLICY), _logprobs(full, POLICY))
    ]
    assert gaps[2] < gaps[1] < gaps[0]


def test_loftq_adapts_the_target_modules_alone(build: Callable[..., ActorCritic], folder: Path) -> None:
    update = weight_update(
        _export(build(AdapterStart.loftq, target_modules="q_proj,down_proj")), Nf4Weights(folder)
    )
    assert {name.split(".")[-2] for name in dict(update)} == {"q_proj", "down_proj"}
