"""QLoRA's learner: a base in NF4 against plain PEFT on the dequantized model, for every kind of adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from rlpost.algorithms.roles import CRITIC, POLICY
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import AdapterKind, BaseKind, Dtype, LoraConfig
from rlpost.errors import ModelError
from rlpost.kernels.nf4 import round_trip
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.fused_layers import can_fuse
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.learner.model.quantized_base import Nf4Linear, with_base
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import Nf4Weights
from rlpost.weights.models import linear_layers
from rlpost.weights.update import weight_update
from tests.adapter_kinds import ADAPTERS, small
from tests.learner_data import random_episodes, write_rounded, write_small_model
from tests.peft_kinds import MERGED, SOME

ON_NF4 = tuple(kind for kind in ADAPTERS if TABLE[kind].nf4)
LORA = LoraConfig(rank=4, alpha=8.0, base=BaseKind.nf4)
ROWS = [Row(t.token_ids, t.loss_mask) for t in random_episodes(5)]
BATCH = collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in range(5)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="module")
def dequantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded(folder, tmp_path_factory.mktemp("dequantized"))


@pytest.fixture
def build(folder: Path) -> Callable[..., ActorCritic]:
    def built(
        kind: AdapterKind = AdapterKind.lora,
        base: BaseKind = BaseKind.nf4,
        on: Path = folder,
        **settings: Any,
    ) -> ActorCritic:
        lora = replace(small(kind, LORA), base=base, **settings)
        model = actor_critic.build(on, Dtype.float32, lora, 0, (POLICY, CRITIC), None)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters_of(POLICY):
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    return built


def gradients(model: ActorCritic, batch: MicroBatch = BATCH) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs, and what a weighted sum of them gives the policy's parameters."""
    logprobs = model(batch, (POLICY,), 0.8).of(POLICY)
    slopes = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(2))
    return logprobs.detach(), list(
        torch.autograd.grad((slopes * logprobs).sum(), model.parameters_of(POLICY))
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ON_NF4)
def test_logprobs_and_gradients_are_those_of_the_dequantized_model(
    build: Callable[..., ActorCritic], dequantized: Path, kind: AdapterKind, fused: bool
) -> None:
    ours, theirs = build(kind), build(kind, BaseKind.stored, dequantized)
    for model in (ours, theirs):
        if fused:
            model.fuse()
    assert ours.fused == theirs.fused == (fused and kind in (AdapterKind.lora, AdapterKind.rslora))
    # Starts that are made of the weight, such as DoRA's magnitudes, are made of the rounded one.
    for mine, their in zip(ours.parameters_of(POLICY), theirs.parameters_of(POLICY), strict=True):
        torch.testing.assert_close(mine, their)
    (found, slopes), (expected, their_slopes) = gradients(ours), gradients(theirs)
    torch.testing.assert_close(found, expected)
    for mine, their in zip(slopes, their_slopes, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)
    stored = build(kind, BaseKind.stored)
    assert (gradients(stored)[0] - found).abs().max() > 0.05  # rounding to NF4 does something


@pytest.mark.parametrize("kind", ON_NF4)
def test_the_update_over_the_rounded_weights_is_the_learners_policy(
    build: Callable[..., ActorCritic], folder: Path, kind: AdapterKind
) -> None:
    """What an engine merges (one of the kinds is made of W0's singular vectors), against the learner's forward."""
    model = build(kind)
    adapter = Adapter.create(model.weights.config, model.weights.tensors(POLICY), 1, BaseKind.nf4)
    weights = Nf4Weights(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for values in (weights, dict(weight_update(adapter, weights))):
        merged.load_state_dict(dict(values), strict=False)
    [row] = ROWS[:1]
    with torch.no_grad():
        table = torch.log_softmax(merged(torch.tensor([list(row.token_ids)])).logits[0] / 0.8, dim=-1)
    expected = [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    found = gradients(model)[0][torch.argsort(BATCH.slots_N)][: len(expected)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.dora])
@pytest.mark.parametrize("fused", [False, True])
def test_biases_are_kept(
    build: Callable[..., ActorCritic], kind: AdapterKind, fused: bool, tmp_path: Path
) -> None:
    """Qwen 2 has them on q, k and v."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_hidden_layers=1, initializer_range=0.3, **sizes))
    biases = {name: p for name, p in model.named_parameters() if name.endswith(".bias")}
    assert len(biases) == 3
    for bias in biases.values():
        bias.data.normal_()
    model.save_pretrained(tmp_path / "stored")
    for name in linear_layers(tmp_path / "stored"):
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight)
    model.save_pretrained(tmp_path / "dequantized")
    ours = build(kind, on=tmp_path / "stored")
    theirs = build(kind, BaseKind.stored, tmp_path / "dequantized")
    for each in (ours, theirs) if fused else ():
        each.fuse()
    torch.testing.assert_close(gradients(ours)[0], gradients(theirs)[0])


@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if not TABLE[kind].nf4])
def test_peft_does_not_take_the_kinds_that_are_refused(
    build: Callable[..., ActorCritic], kind: AdapterKind
) -> None:
    with pytest.raises(ValueError, match=r"not a plain torch\.nn\.Linear"):
        build(kind)


@pytest.mark.parametrize("case", MERGED)
def test_every_kind_of_peft_computes_as_on_the_dequantized_model(
    case: str, folder: Path, dequantized: Path
) -> None:
    """Outputs and gradients: to PEFT the layer is linear."""
    settings = {"target_modules": SOME, **MERGED[case]}
    found, tensors = [], None
    for on, kind in ((folder, BaseKind.nf4), (dequantized, BaseKind.stored)):
        base = AutoModelForCausalLM.from_pretrained(on, dtype=torch.float32)
        torch.manual_seed(0)
        model = get_peft_model(with_base(base, kind, folder), PeftConfig.from_peft_type(**settings)).eval()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained if tensors is None else ():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
        tensors = tensors or {n: each.clone() for n, each in get_peft_model_state_dict(model).items()}
        set_peft_model_state_dict(model, tensors)
        logits = model(torch.arange(5, 45)[None]).logits
        slopes = torch.autograd.grad(logits.log_softmax(-1)[..., 3].sum(), trained, allow_unused=True)
        found.append([logits, *(slope for slope in slopes if slope is not None)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_plain_peft_on_the_dequantized_model_gives_the_same_logprobs(
    build: Callable[..., ActorCritic], dequantized: Path, tmp_path: Path
) -> None:
    model = build()
    config = model.weights.config
    Adapter.create(config, model.weights.tensors(POLICY), 1, BaseKind.nf4).save(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    [row] = ROWS[:1]
    with torch.no_grad():
        table = torch.log_softmax(plain(torch.tensor([list(row.token_ids)])).logits[0] / 0.8, dim=-1)
    expected = [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    found = gradients(model)[0][torch.argsort(BATCH.slots_N)][: len(expected)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_what_is_held(build: Callable[..., ActorCritic], folder: Path) -> None:
    """Every linear layer, whether adapted or not, in codes: about half a byte a weight, in no checkpoint."""
    model = build(target_modules="q_proj")
    layers = {name: m for name, m in model.weights.base.named_modules() if isinstance(m, Nf4Linear)}
    assert {name.removesuffix(".base_layer") for name in layers} == set(linear_layers(folder))
    count = sum(layer.in_features * layer.out_features for layer in layers.values())
    held = sum(b.numel() * b.element_size() for layer in layers.values() for b in layer.buffers())
    assert 0.5 * count < held < 0.55 * count
    assert sum(p.numel() for layer in layers.values() for p in layer.parameters()) == 0
    assert not [name for name in model.state_dict() if name.endswith(("codes", "magnitudes", "scales"))]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_pass_keeps_a_weight(build: Callable[..., ActorCritic], checkpointing: bool) -> None:
    """Of all tensors that a forward pass saves for its backward, none has the shape of a weight."""
    saved: list[torch.Size] = []
    for fused in (False, True):
        model = build()
        if checkpointing:
            model.checkpoint_activations()
        if fused:
            model.fuse()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            model(BATCH, (POLICY,), 1.0)
    weights = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, Nf4Linear)}
    assert saved
    assert not {shape for shape in saved if tuple(shape) in weights or tuple(shape)[::-1] in weights}


def test_autocast_computes_as_a_plain_layer_does(folder: Path) -> None:
    """bfloat16 without fused layers: PEFT's layers under autocast, as with a plain base."""
    lora = small(AdapterKind.dora, LORA)
    model = actor_critic.build(folder, Dtype.bfloat16, lora, 0, (POLICY,), None)
    layer = next(m for m in model.modules() if isinstance(m, Nf4Linear))
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(layer.weight)
    found = []
    for each in (layer, plain):
        x = torch.ones(3, layer.in_features, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = each(x)
        y.square().sum().backward()
        found.append((y, x.grad))
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs)
    assert layer.weight.dtype == torch.bfloat16
    assert all(torch.isfinite(slope).all() for slope in gradients(model)[1])


def test_only_layers_whose_weight_is_known_are_fused(build: Callable[..., ActorCritic]) -> None:
    class Linear4bit(nn.Linear):
        """As bitsandbytes' is: its weight holds codes."""

    layer = next(m for m in build().modules() if isinstance(m, LoraLayer))
    assert can_fuse(layer)
    assert can_fuse(layer.base_layer)
    assert can_fuse(nn.Linear(2, 2))
    layer.base_layer = Linear4bit(2, 2)
    assert not can_fuse(layer)
    assert not can_fuse(Linear4bit(2, 2))


def test_a_model_whose_layers_are_not_linear_is_refused(tmp_path: Path) -> None:
    """GPT-2's are `Conv1D`, whose weights are stored transposed."""
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"of \d+ are no plain linear layers"):
        actor_critic.build(tmp_path, Dtype.float32, LORA, 0, (POLICY,), None)
