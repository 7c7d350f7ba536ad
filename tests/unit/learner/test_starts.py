"""Starts of an adapter, with PEFT's own initialisations on the same inputs as the witness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, PeftModel, get_peft_model
from peft import LoraConfig as PeftLora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlpost.algorithms import roles
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.adapter_starts import STARTS, StartData
from rlpost.config.schema import AdapterKind, AdapterStart, Dtype, LoraConfig
from rlpost.errors import AdapterError, LearnerError
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.peft_weights import START, PeftWeights
from rlpost.learner.model.prefixes import Group
from rlpost.types import Example
from rlpost.weights.adapters import Adapter, merged_weight
from tests.learner_data import VOCAB, write_small_model

LORA = LoraConfig(rank=4, alpha=10.0)
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL = [start for start in AdapterStart if start is not AdapterStart.loftq]
CHANGING = [start for start in ALL if STARTS[start].changes_base]
LENGTH = 21  # all examples are as long, so that PEFT can take them as one batch without padding


def _examples() -> list[Example]:
    ids = torch.randint(VOCAB, (12, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = (0,) * 9 + (1,) * (LENGTH - 9)
    return [Example(tuple(row), mask) for row in ids.tolist()]


EXAMPLES = _examples()
IDS = torch.tensor([e.token_ids for e in EXAMPLES])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture
def build(folder: Path) -> Callable[..., ActorCritic]:
    def built(
        start: AdapterStart, kind: AdapterKind = AdapterKind.lora, examples: list[Example] | None = EXAMPLES
    ) -> ActorCritic:
        lora = replace(LORA, kind=kind, start=start)
        return actor_critic.build(folder, Dtype.float32, lora, 0, roles.ROLES, None, examples)

    return built


def _weights(model: ActorCritic) -> PeftWeights:
    assert isinstance(model.weights, PeftWeights)
    return model.weights


def _batch() -> MicroBatch:
    rows = [Row(e.token_ids, e.loss_mask) for e in EXAMPLES[:4]]
    return collate(rows, slot_starts(rows), [Group(0, (i,)) for i in range(len(rows))])


def _logprobs(model: ActorCritic, role: str) -> Tensor:
    found = model(_batch(), (role,), 1.0).of(role)
    assert isinstance(found, Tensor)
    return found.detach()


def _train(model: ActorCritic, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters_of(POLICY), lr=0.05)
    for _ in range(steps):
        loss = -model(_batch(), (POLICY,), 1.0).of(POLICY).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _export(model: ActorCritic) -> Adapter:
    return Adapter.create(*model.weights.export(), version=1)


def _base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _plain_logprobs(model: Any) -> Tensor:
    with torch.no_grad():
        table = torch.log_softmax(model(IDS[:4, :-1]).logits, dim=-1)
    chosen = table.gather(-1, IDS[:4, 1:, None])[..., 0]
    return chosen[:, 8:].flatten()


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.rslora])
@pytest.mark.parametrize("start", ALL)
def test_every_role_starts_at_the_base_which_stays(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart, kind: AdapterKind
) -> None:
    model, base = build(start, kind), _base(folder)
    expected = _plain_logprobs(base)
    for role in (POLICY, REFERENCE):
        torch.testing.assert_close(_logprobs(model, role), expected, rtol=0, atol=2e-5)
    own = {name.replace(".base_layer", ""): p for name, p in model.weights.base.named_parameters()}
    for name, parameter in base.named_parameters():
        assert torch.equal(own[name], parameter)
        assert not own[name].requires_grad
        assert own[name].grad is None


@pytest.mark.parametrize("kind", [AdapterKind.dora, AdapterKind.rsdora])
@pytest.mark.parametrize("start", [s for s in ALL if s not in CHANGING])
def test_dora_starts_at_the_base_too(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart, kind: AdapterKind
) -> None:
    found = _logprobs(build(start, kind), POLICY)
    torch.testing.assert_close(found, _plain_logprobs(_base(folder)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.rslora])
@pytest.mark.parametrize("start", ALL)
def test_the_trained_policy_is_a_plain_lora_of_the_base(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart, kind: AdapterKind, tmp_path: Path
) -> None:
    """Its files in plain PEFT, and W0 + s (B A - B0 A0) written out, give the learner's log-probs and weights."""
    model = build(start, kind)
    first = {name: t.double() for name, t in model.weights.tensors(POLICY).items()}
    _train(model)
    _export(model).save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    assert adapter.config["init_lora_weights"] is True
    assert adapter.config["r"] == (8 if start in CHANGING else 4)
    plain = PeftModel.from_pretrained(_base(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(_plain_logprobs(plain), _logprobs(model, POLICY), rtol=1e-4, atol=1e-4)
    assert (_logprobs(model, POLICY) - _plain_logprobs(_base(folder))).abs().max() > 0.05

    s = 10.0 / (2.0 if kind is AdapterKind.rslora else 4.0)
    now = {name: t.double() for name, t in model.weights.tensors(POLICY).items()}
    stored = dict(_base(folder).named_parameters())
    for module in adapter.modules:
        A, B = (f"base_model.model.{module}.lora_{factor}.weight" for factor in "AB")
        W0 = stored[f"{module}.weight"].detach()
        expected = W0.double() + s * (now[B] @ now[A] - first[B] @ first[A])
        torch.testing.assert_close(
            merged_weight(adapter, module, W0).double(), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("start", [AdapterStart.pissa, AdapterStart.olora])
def test_the_export_is_pefts_own_conversion(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart, use_rslora: bool, tmp_path: Path
) -> None:
    config = PeftLora(
        r=4, lora_alpha=10, use_rslora=use_rslora, init_lora_weights=start.value, target_modules=MODULES
    )
    theirs = get_peft_model(_base(folder), config)
    theirs.save_pretrained(tmp_path / "untrained")
    model = build(start, AdapterKind.rslora if use_rslora else AdapterKind.lora)
    _train(model)
    own = model.weights.named(POLICY)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(own[name.replace(".default.", f".{POLICY}.")])
    theirs.save_pretrained(
        tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "untrained")
    )
    converted, ours = Adapter.load(tmp_path / "out"), _export(model)
    for key in ("r", "lora_alpha", "use_rslora", "init_lora_weights"):
        assert ours.config[key] == pytest.approx(converted.config[key])
    assert set(ours.tensors) == set(converted.tensors)
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(tensor, converted.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ALL)
def test_fused_layers_compute_the_same(build: Callable[..., ActorCritic], start: AdapterStart) -> None:
    plain, fused = build(start), build(start)
    fused.fuse()
    assert fused.fused
    for model in (plain, fused):
        _train(model)
    torch.testing.assert_close(_logprobs(fused, POLICY), _logprobs(plain, POLICY), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(_logprobs(fused, REFERENCE), _logprobs(plain, REFERENCE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ALL)
def test_a_start_depends_on_its_arguments_alone(
    build: Callable[..., ActorCritic], start: AdapterStart
) -> None:
    """Not on the state of torch's generator, so every rank has the same one."""
    torch.manual_seed(1)
    first = build(start)
    torch.manual_seed(2)
    second = build(start)
    for role in (POLICY, CRITIC):
        for one, other in zip(
            first.weights.named(role).values(), second.weights.named(role).values(), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("start", CHANGING)
def test_the_subtracted_part_is_frozen_and_restored_from_a_checkpoint(
    build: Callable[..., ActorCritic], start: AdapterStart
) -> None:
    model = build(start)
    assert not any(p.requires_grad for p in model.parameters_of(START))
    before = model.weights.tensors(START)
    _train(model)
    assert all(torch.equal(before[name], t) for name, t in model.weights.tensors(START).items())
    assert model.weights.frozen == (REFERENCE, START)
    resumed = build(start, examples=None)
    assert not torch.allclose(_logprobs(resumed, POLICY), _logprobs(model, POLICY), atol=1e-2)
    for name in (POLICY, *model.weights.frozen):
        resumed.weights.load(name, model.weights.tensors(name))
    assert torch.equal(_logprobs(resumed, POLICY), _logprobs(model, POLICY))
    assert _export(resumed).fingerprint == _export(model).fingerprint


def test_the_export_of_such_a_start_is_a_start_of_twice_the_rank(
    build: Callable[..., ActorCritic], folder: Path
) -> None:
    model = build(AdapterStart.pissa)
    _train(model)
    adapter = _export(model)
    doubled = replace(LORA, rank=8, alpha=20.0)
    again = actor_critic.build(folder, Dtype.float32, doubled, 0, (POLICY,), adapter)
    torch.testing.assert_close(_logprobs(again, POLICY), _logprobs(model, POLICY), rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match=r"lora.rank=8 lora.alpha=20"):
        actor_critic.build(folder, Dtype.float32, LORA, 0, (POLICY,), adapter)


def _assert_same_up_to_sign(ours: Tensor, theirs: Tensor, dim: int, atol: float) -> None:
    """Equal vectors along `dim`, up to the sign of each."""
    signs = (ours * theirs).sum(dim, keepdim=True).sign()
    torch.testing.assert_close(ours * signs, theirs, rtol=0, atol=atol * theirs.abs().max().item())


def _assert_pefts(model: ActorCritic, theirs: Any, atol: float) -> None:
    """Rows of A and columns of B are PEFT's, up to their signs."""
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in theirs.named_modules()
        if isinstance(layer, LoraLayer)
    }
    own = _weights(model).peft.base_model.model
    assert layers
    for name, layer in layers.items():
        mine = own.get_submodule(name)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        _assert_same_up_to_sign(mine.lora_A[POLICY].weight, A, 1, atol)
        _assert_same_up_to_sign(mine.lora_B[POLICY].weight, B, 0, atol)


@torch.no_grad()
@pytest.mark.parametrize("start", [AdapterStart.pissa, AdapterStart.olora])
def test_starts_from_the_weight_are_pefts(
    build: Callable[..., ActorCritic], folder: Path, start: AdapterStart
) -> None:
    config = PeftLora(r=4, lora_alpha=10, init_lora_weights=start.value, target_modules=MODULES)
    _assert_pefts(build(start), get_peft_model(_base(folder), config), 1e-4)


@torch.no_grad()
def test_corda_is_pefts_on_the_same_inputs(build: Callable[..., ActorCritic], folder: Path) -> None:
    config = PeftLora(
        r=4, lora_alpha=10, init_lora_weights="corda", corda_config=CordaConfig(), target_modules=MODULES
    )
    base = _base(folder)
    preprocess_corda(base, config, run_model=lambda: [base(row[None, :-1]) for row in IDS])
    _assert_pefts(build(AdapterStart.corda), get_peft_model(base, config), 1e-2)


def test_lora_ga_is_pefts_on_the_same_gradients(build: Callable[..., ActorCritic], folder: Path) -> None:
    config = PeftLora(
        r=4, lora_alpha=10, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(), target_modules=MODULES
    )
    base = _base(folder)
    labels = IDS.masked_fill(torch.arange(LENGTH) < 9, -100)

    def losses() -> None:
        for row, label in zip(IDS, labels, strict=True):
            base(row[None], labels=label[None]).loss.backward()

    preprocess_loraga(base, config, losses)
    with torch.no_grad():
        _assert_pefts(build(AdapterStart.lora_ga), get_peft_model(base, config), 2e-2)


@torch.no_grad()
def test_eva_is_pefts_on_the_same_inputs(build: Callable[..., ActorCritic], folder: Path) -> None:
    """PEFT's decomposition is randomised, so its directions are near ours, and those of its exact one equal ours."""
    config = PeftLora(
        r=4, lora_alpha=10, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0), target_modules=MODULES
    )
    base, inputs, passes = _base(folder), dict[str, Tensor](), 0

    def forward(model: Any, batch: Any) -> None:
        nonlocal passes
        passes += 1
        assert passes < 20, "PEFT does not converge"
        model(**batch)

    found = get_eva_state_dict(base, [{"input_ids": IDS[:, :-1]}], config, forward, show_progress_bar=False)
    for name in found:
        base.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: inputs.update({name: x[0].flatten(0, 1)})
        )
    base(IDS[:, :-1])
    own = _weights(build(AdapterStart.eva)).peft.base_model.model
    assert len(found) == 14
    for name, directions in found.items():
        mine = own.get_submodule(name)
        assert not mine.lora_B[POLICY].weight.any()
        A = mine.lora_A[POLICY].weight.double()
        exact = IncrementalPCA(n_components=4).partial_fit(inputs[name].double())
        _assert_same_up_to_sign(A, exact.components_, 1, 1e-3)
        assert (A * directions).sum(1).abs().min() > 0.9


def test_gaussian_and_orthogonal_have_their_distributions(build: Callable[..., ActorCritic]) -> None:
    gaussian = torch.cat(
        [layer.lora_A[POLICY].weight.flatten() for layer in _weights(build(AdapterStart.gaussian)).layers]
    )
    assert gaussian.std().item() == pytest.approx(1 / 4, rel=0.05)
    for layer in _weights(build(AdapterStart.orthogonal)).layers:
        A, B = layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
        assert A.abs().max() > 0.05
        assert B.abs().max() > 0.05
        assert (B @ A).abs().max() < 1e-6


def test_starts_that_read_examples_say_when_there_are_none(build: Callable[..., ActorCritic]) -> None:
    for start in (s for s in ALL if STARTS[s].data is not StartData.none):
        with pytest.raises(LearnerError, match=r"no example"):
            build(start, examples=[])
    with pytest.raises(LearnerError, match="no example has a token in the loss"):
        build(AdapterStart.lora_ga, examples=[Example(e.token_ids, (0,) * LENGTH) for e in EXAMPLES])
