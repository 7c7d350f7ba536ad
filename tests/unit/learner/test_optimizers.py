"""The optimizer without DeepSpeed: each part against torch's own on the same gradients, and clipping by role."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlpost.algorithms.roles import CRITIC, POLICY
from rlpost.config.optimizers import is_muons
from rlpost.config.schema import AdapterKind, Dtype, LearnerConfig, LoraConfig, Optimizer
from rlpost.errors import LearnerError
from rlpost.learner import optimizers
from rlpost.learner.lora_pro import LoraPro
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.optimizers import RoleOptimizer
from tests.learner_data import write_small_model

RATES = {POLICY: 1e-2, CRITIC: 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="module")
def built(folder: Path) -> ActorCritic:
    lora = LoraConfig(rank=4, alpha=8.0)
    return actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY, CRITIC), None)


@pytest.fixture
def model(built: ActorCritic) -> Iterator[ActorCritic]:
    """With weights of its own, so that a test cannot change another's."""
    kept = copy.deepcopy(built.state_dict())
    yield built
    built.load_state_dict(kept, strict=False)  # the frozen base is left out


def _config(optimizer: Optimizer = Optimizer.adamw, ratio: float = 1.0) -> LearnerConfig:
    return LearnerConfig(optimizer=optimizer, lora_plus_ratio=ratio, weight_decay=0.1)


def _gradients(model: ActorCritic, step: int, size: float = 1e-3) -> None:
    """Random gradients, so small that nothing is clipped."""
    generator = torch.Generator().manual_seed(step)
    for role in model.trained:
        for p in model.parameters_of(role):
            p.grad = size * torch.randn(p.shape, generator=generator)


def _stepped(model: ActorCritic, cfg: LearnerConfig, steps: int = 3) -> RoleOptimizer:
    optimizer = optimizers.build(model, cfg)
    for step in range(steps):
        _gradients(model, step)
        optimizer.set_rates(RATES)
        optimizer.step()
    return optimizer


def _values(model: ActorCritic, role: str) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters_of(role)]


def _by_torch(model: ActorCritic, parts: list[torch.optim.Optimizer], steps: int = 3) -> None:
    for step in range(steps):
        _gradients(model, step)
        for part in parts:
            part.step()


def _adamw(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)


def _after_torch(model: ActorCritic, parts: list[torch.optim.Optimizer]) -> list[Tensor]:
    _by_torch(model, parts)
    return [value for role in model.trained for value in _values(model, role)]


def _after_ours(model: ActorCritic, cfg: LearnerConfig) -> list[Tensor]:
    before = copy.deepcopy(model.state_dict())
    _stepped(model, cfg)
    found = [value for role in model.trained for value in _values(model, role)]
    model.load_state_dict(before, strict=False)  # the frozen base is left out
    return found


def test_adamw_is_torchs_bit_for_bit(model: ActorCritic) -> None:
    ours = _after_ours(model, _config())
    parts: list[torch.optim.Optimizer] = [
        _adamw(model.parameters_of(role), RATES[role]) for role in model.trained
    ]
    assert all(map(torch.equal, ours, _after_torch(model, parts)))


def test_lora_plus_multiplies_the_rate_of_b_alone(model: ActorCritic) -> None:
    ours = _after_ours(model, _config(ratio=16.0))
    named = dict(model.named_parameters())
    parts: list[torch.optim.Optimizer] = []
    for role in model.trained:
        its = {id(p) for p in model.parameters_of(role)}
        fast = [p for name, p in named.items() if id(p) in its and "lora_B" in name]
        slow = [p for name, p in named.items() if id(p) in its and "lora_B" not in name]
        assert len(fast) == 14
        parts += [_adamw(slow, RATES[role]), _adamw(fast, 16.0 * RATES[role])]
    assert all(map(torch.equal, ours, _after_torch(model, parts)))


def test_muon_updates_matrices_and_adamw_the_value_head(model: ActorCritic) -> None:
    ours = _after_ours(model, _config(Optimizer.muon))
    assert model.value_head is not None
    head = list(model.value_head.parameters())
    parts: list[torch.optim.Optimizer] = [_adamw(head, RATES[CRITIC])]
    for role in model.trained:
        matrices = [p for p in model.parameters_of(role) if all(p is not other for other in head)]
        parts.append(
            torch.optim.Muon(matrices, lr=RATES[role], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        )
    assert all(map(torch.equal, ours, _after_torch(model, parts)))


def test_muons_step_is_the_momentums_orthogonal_factor(model: ActorCritic) -> None:
    """By the singular value decomposition: five Newton-Schulz steps bring each singular value near to 1."""
    cfg = _config(Optimizer.muon)
    cfg.weight_decay = 0.0
    weight = optimizers.pairs(model, POLICY)[0][0]
    before = weight.detach().clone()
    _stepped(model, cfg, steps=1)
    _gradients(model, 0)
    assert weight.grad is not None
    U, _, Vh = torch.linalg.svd(weight.grad, full_matrices=False)
    size = 0.2 * math.sqrt(max(weight.shape)) * RATES[POLICY]
    step = (before - weight.detach()) / size
    values = torch.linalg.svdvals(step)
    assert 0.6 < values.min() <= values.max() < 1.3
    assert (step * (U @ Vh)).sum() / (step.norm() * (U @ Vh).norm()) > 0.95


def test_lora_pro_pairs_every_layer_with_its_scaling(model: ActorCritic) -> None:
    ours = _after_ours(model, _config(Optimizer.lora_pro))
    assert model.value_head is not None
    parts: list[torch.optim.Optimizer] = [_adamw(list(model.value_head.parameters()), RATES[CRITIC])]
    named = dict(model.named_parameters())
    for role in model.trained:
        names = [name for name in named if f".lora_A.{role}." in name]
        paired = [p for name in names for p in (named[name], named[name.replace("lora_A", "lora_B")])]
        part = LoraPro([{"params": paired, "scalings": [2.0] * len(names)}], (0.9, 0.95), 0.1)
        part.param_groups[0]["lr"] = RATES[role]
        parts.append(part)
    assert all(map(torch.equal, ours, _after_torch(model, parts)))


@pytest.mark.parametrize(
    "cfg", [_config(), _config(ratio=4.0), _config(Optimizer.muon), _config(Optimizer.lora_pro)]
)
def test_each_role_is_clipped_by_its_own_norm(model: ActorCritic, cfg: LearnerConfig) -> None:
    """The critic's gradient is large, the policy's small: only the critic's is scaled, whatever the groups."""
    optimizer = optimizers.build(model, cfg)
    _gradients(model, 0)
    for p in model.parameters_of(CRITIC):
        assert p.grad is not None
        p.grad *= 1e6
    norms = {
        role: torch.cat([p.grad.flatten() for p in model.parameters_of(role) if p.grad is not None]).norm()
        for role in model.trained
    }
    optimizer.set_rates(RATES)
    optimizer.step()
    after = {
        role: torch.cat([p.grad.flatten() for p in model.parameters_of(role) if p.grad is not None]).norm()
        for role in model.trained
    }
    assert optimizer.norms == pytest.approx({role: norm.item() for role, norm in norms.items()}, rel=1e-5)
    assert after[CRITIC].item() == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(after[POLICY], norms[POLICY])


@pytest.mark.parametrize(("norm", "after"), [(1.2, 1.0), (0.9, 0.9)])
def test_a_norm_is_clipped_from_the_bound_on(model: ActorCritic, norm: float, after: float) -> None:
    optimizer = optimizers.build(model, _config())
    _gradients(model, 0)
    gradients = [p.grad for p in model.parameters_of(POLICY) if p.grad is not None]
    before = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch._foreach_mul_(gradients, norm / before.item())
    optimizer.set_rates(RATES)
    optimizer.step()
    assert optimizer.norms[POLICY] == pytest.approx(norm, rel=1e-4)
    found = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert found.item() == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("name", [Optimizer.adamw, Optimizer.muon, Optimizer.lora_pro])
def test_a_gradient_that_is_not_finite_is_refused_and_nothing_moves(
    model: ActorCritic, name: Optimizer
) -> None:
    optimizer = optimizers.build(model, _config(name))
    _gradients(model, 0)
    grad = model.parameters_of(CRITIC)[-1].grad
    assert grad is not None
    grad.fill_(math.nan)
    optimizer.set_rates(RATES)
    before = _values(model, POLICY)
    with pytest.raises(LearnerError, match="critic is not finite"):
        optimizer.step()
    assert all(map(torch.equal, before, _values(model, POLICY)))


@pytest.mark.parametrize("name", [Optimizer.adamw, Optimizer.muon, Optimizer.lora_pro])
def test_a_rate_of_0_leaves_a_role_and_its_moments_alone(model: ActorCritic, name: Optimizer) -> None:
    optimizer = _stepped(model, _config(name), steps=1)
    state = copy.deepcopy({i: optimizer.state[p] for i, p in enumerate(model.parameters_of(CRITIC))})
    critic, policy = _values(model, CRITIC), _values(model, POLICY)
    _gradients(model, 1)
    optimizer.set_rates({POLICY: 1e-2, CRITIC: 0.0})
    optimizer.step()
    assert all(map(torch.equal, critic, _values(model, CRITIC)))
    assert not any(map(torch.equal, policy, _values(model, POLICY)))
    for i, p in enumerate(model.parameters_of(CRITIC)):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state[i].items())
    assert set(optimizer.norms) == {POLICY}


@pytest.mark.parametrize(
    "cfg", [_config(), _config(ratio=4.0), _config(Optimizer.muon), _config(Optimizer.lora_pro)]
)
def test_a_loaded_state_continues_exactly_and_a_reset_begins_anew(
    model: ActorCritic, cfg: LearnerConfig, tmp_path: Path
) -> None:
    weights = copy.deepcopy(model.state_dict())
    optimizer = _stepped(model, cfg, steps=2)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    middle = copy.deepcopy(model.state_dict())

    def third(optimizer: RoleOptimizer) -> list[Tensor]:
        model.load_state_dict(middle, strict=False)  # the frozen base is left out
        _gradients(model, 2)
        optimizer.set_rates(RATES)
        optimizer.step()
        return [value for role in model.trained for value in _values(model, role)]

    expected = third(optimizer)
    fresh = optimizers.build(model, cfg)
    fresh.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert all(map(torch.equal, expected, third(fresh)))
    assert not all(map(torch.equal, expected, third(optimizers.build(model, cfg)))), "the state counts"
    optimizer.reset()
    assert all(map(torch.equal, third(optimizer), third(optimizers.build(model, cfg))))
    model.load_state_dict(weights, strict=False)  # the frozen base is left out


def test_bytes_of_8_bit_moments_stay_bytes_and_the_package_gets_all_groups(
    model: ActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes needs a GPU; what stands in for it here keeps a state of bytes, as it does."""

    class Stored(torch.optim.SGD):
        def __init__(
            self, groups: list[dict[str, object]], lr: float, betas: object, weight_decay: float
        ) -> None:
            assert (betas, weight_decay) == ((0.9, 0.95), 0.1)
            super().__init__(groups, lr=lr)

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                self.state[p] = {"step": 1, "state1": torch.full(p.shape, 200, dtype=torch.uint8)}

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=Stored))
    optimizer = _stepped(model, _config(Optimizer.adamw_8bit), steps=1)
    fresh = optimizers.build(model, _config(Optimizer.adamw_8bit))
    fresh.load_state_dict(optimizer.state_dict())
    state = fresh.state[model.parameters_of(POLICY)[0]]
    assert state["state1"].dtype == torch.uint8
    assert state["state1"].eq(200).all()
    fresh.reset()
    assert not fresh.state


def test_doras_magnitudes_are_adamws(folder: Path) -> None:
    lora = LoraConfig(rank=4, alpha=8.0, kind=AdapterKind.dora)
    model = actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), None)
    for name in (Optimizer.muon, Optimizer.lora_pro):
        groups = optimizers.build(model, _config(name)).param_groups
        parts = {group["part"]: {p.ndim for p in group["params"]} for group in groups}
        assert parts == {name.name: {2}, "adamw": {1}}


def test_muon_leaves_embeddings_and_norms_of_full_fine_tuning_to_adamw(folder: Path) -> None:
    lora = LoraConfig(kind=AdapterKind.full)
    model = actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), None)
    groups = optimizers.build(model, _config(Optimizer.muon)).param_groups
    found = {group["part"]: {id(p) for p in group["params"]} for group in groups}
    named = model.weights.named(POLICY)
    assert len(found["muon"]) == 2 * 7
    assert found["adamw"] == {id(p) for name, p in named.items() if "embed" in name or "norm" in name}


def test_muon_without_a_matrix_is_refused(folder: Path) -> None:
    lora = LoraConfig(kind=AdapterKind.full, target_modules="norm,embed_tokens")
    model = actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), None)
    with pytest.raises(LearnerError, match="the policy has no matrix that Muon could update"):
        optimizers.build(model, _config(Optimizer.muon))


def test_a_role_without_pairs_is_refused(model: ActorCritic) -> None:
    with pytest.raises(LearnerError, match="has no pair of A and B"):
        optimizers.pairs(model, "reference")


def test_muons_matrices_have_two_rows_and_are_no_vocabulary() -> None:
    assert is_muons("model.layers.0.mlp.up_proj.weight", (2, 9))
    assert not is_muons("model.layers.0.mlp.up_proj.lora_A.policy.weight", (1, 9))
    assert not is_muons("model.norm.weight", (9,))
    assert not is_muons("lm_head.weight", (20, 9))
    assert not is_muons("model.embed_tokens.weight", (20, 9))
