"""Whole parameters by role, against plain transformers and autograd; their selections; what each role owns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from rlpost.algorithms import roles
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.schema import AdapterKind, Dtype, LoraConfig
from rlpost.errors import AdapterError, ModelError
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.weights.adapters import Adapter
from tests.learner_data import VOCAB, random_episodes

ROWS = [Row(t.token_ids, t.loss_mask) for t in random_episodes(5)]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
CONFIGS = {
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "biased": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
}
TIED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def written(name: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"full-{name}"
        if not folder.is_dir():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(CONFIGS[name]())
            for parameter in model.parameters():
                parameter.data.add_(0.05 * torch.randn(parameter.shape))  # no norm at 1, no bias at 0
            model.save_pretrained(folder)
        return folder

    return written


def _build(
    folder: Path,
    targets: str = "all-linear",
    kind: AdapterKind = AdapterKind.full,
    dtype: Dtype = Dtype.float32,
    start: Adapter | None = None,
) -> ActorCritic:
    lora = LoraConfig(kind=kind, target_modules=targets)
    return actor_critic.build(folder, dtype, lora, 0, roles.ROLES, start)


def _batch() -> MicroBatch:
    return collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in range(len(ROWS))])


def _shake(model: ActorCritic, role: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters_of(role):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _plain(folder: Path, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """Transformers' own model with `tensors` in place of some of its parameters."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    left, unknown = model.load_state_dict(tensors, strict=False)
    assert not unknown
    assert len(left) + len(tensors) == len(model.state_dict())
    model.tie_weights()
    return model.eval()


def _plain_outputs(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropy and last hidden states at the loss tokens, row by row."""
    logprobs, entropies, states = [], [], []
    for row in ROWS:
        ids = torch.tensor([list(row.token_ids)])
        at = torch.tensor([t for t, counted in enumerate(row.mask) if counted])
        output = model(ids, output_hidden_states=True)
        table = torch.log_softmax(output.logits[0, at - 1], dim=-1)
        logprobs.append(table.gather(1, ids[0, at, None])[:, 0])
        entropies.append(-(table.exp() * table).sum(1))
        states.append(output.hidden_states[-1][0, at - 1])
    return torch.cat(logprobs), torch.cat(entropies), torch.cat(states)


def _weights() -> Tensor:
    return torch.randn(slot_starts(ROWS)[-1], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_equal_plain_autograd(
    folder_of: Callable[[str], Path], name: str, checkpointed: bool
) -> None:
    """Of policy and critic together, each with weights of its own, of every parameter of the model."""
    folder = folder_of(name)
    model, weights_N, batch = _build(folder), _weights(), _batch()
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    if checkpointed:
        model.checkpoint_activations()
    policy = _plain(folder, model.weights.tensors(POLICY))
    critic = _plain(folder, model.weights.tensors(CRITIC))
    logprobs_N, entropy_N, _ = _plain_outputs(policy)
    values_N = model.value_head(_plain_outputs(critic)[2]).squeeze(-1)
    (weights_N * (logprobs_N + 0.3 * entropy_N + values_N.square())).sum().backward()
    found = model(batch, (POLICY, CRITIC), 1.0)
    torch.testing.assert_close(found.logprobs_N, logprobs_N[batch.slots_N], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values_N, values_N[batch.slots_N], rtol=1e-4, atol=1e-4)
    mine_N = weights_N[batch.slots_N]
    (mine_N * (found.logprobs_N + 0.3 * found.entropy_N + found.values_N.square())).sum().backward()
    for role, plain in ((POLICY, policy), (CRITIC, critic)):
        grads = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        own = model.weights.named(role)
        assert set(own) == set(grads)
        for parameter, grad in grads.items():
            torch.testing.assert_close(own[parameter].grad, grad, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("role", [POLICY, CRITIC])
def test_a_role_reaches_its_own_parameters_only(folder_of: Callable[[str], Path], role: str) -> None:
    model = _build(folder_of("tied"))
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    found = model(_batch(), (role,), 1.0)
    (found.of(role) * _weights()).sum().backward()
    own = {id(p) for p in model.parameters_of(role)}
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, p in model.named_parameters() if id(p) in own}


def test_roles_start_at_the_base_and_the_reference_keeps_the_policy_as_it_was(
    folder_of: Callable[[str], Path],
) -> None:
    folder = folder_of("tied")
    model, batch = _build(folder), _batch()
    found = model(batch, (POLICY, REFERENCE), 1.0)
    expected_N = _plain_outputs(_plain(folder, {}))[0][batch.slots_N]
    torch.testing.assert_close(found.logprobs_N, expected_N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.reference_N, found.logprobs_N, rtol=0, atol=0)
    _shake(model, POLICY, 1)
    moved = model(batch, (POLICY, REFERENCE), 1.0)
    torch.testing.assert_close(moved.reference_N, found.reference_N, rtol=0, atol=0)
    assert (moved.logprobs_N - moved.reference_N).abs().max() > 0.05
    model.weights.freeze_reference()
    torch.testing.assert_close(model(batch, (REFERENCE,), 1.0).reference_N, moved.logprobs_N, rtol=0, atol=0)
    assert not any(p.requires_grad for p in model.weights.named(REFERENCE).values())


def test_without_weights_of_its_own_the_reference_is_the_bare_base(
    folder_of: Callable[[str], Path],
) -> None:
    """Nothing is copied for it, and the tied head follows the role too."""
    folder, batch = folder_of("tied"), _batch()
    lora = LoraConfig(kind=AdapterKind.full)
    model = actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), None)
    _shake(model, POLICY, 1)
    found = model(batch, (POLICY, REFERENCE), 1.0)
    expected_N = _plain_outputs(_plain(folder, {}))[0][batch.slots_N]
    torch.testing.assert_close(found.reference_N, expected_N, rtol=1e-4, atol=1e-4)
    sizes = [sum(p.numel() for p in part) for part in (model.parameters_of(POLICY), model.parameters())]
    assert sizes[1] == 2 * sizes[0]


def test_a_critic_has_no_head_of_its_own(folder_of: Callable[[str], Path]) -> None:
    model = _build(folder_of("untied"))
    assert set(model.weights.named(POLICY)) - set(model.weights.named(CRITIC)) == {HEAD}
    assert TIED in _build(folder_of("tied")).weights.named(CRITIC)


def test_tensors_are_a_start(folder_of: Callable[[str], Path]) -> None:
    """What is exported has the checkpoint's names, each tied parameter once, and starts another learner there."""
    model, batch = _build(folder_of("tied")), _batch()
    _shake(model, POLICY, 1)
    adapter = Adapter.create(model.weights.config, model.weights.tensors(POLICY), 3)
    assert HEAD not in adapter.tensors
    assert {t.dtype for t in adapter.tensors.values()} == {torch.float32}
    again = _build(folder_of("tied"), start=adapter)
    expected = model(batch, (POLICY,), 1.0).logprobs_N
    for role in (POLICY, REFERENCE):
        torch.testing.assert_close(again(batch, (role,), 1.0).of(role), expected, rtol=0, atol=0)
    with pytest.raises(AdapterError, match="differ in name"):
        _build(folder_of("tied"), targets="q_proj", start=adapter)


@pytest.mark.parametrize(
    ("targets", "leaves"),
    [("q_proj,v_proj", {"q_proj", "v_proj"}), ("embed_tokens", {"embed_tokens"}), ("norm", {"norm"})],
)
def test_named_modules_train_alone(folder_of: Callable[[str], Path], targets: str, leaves: set[str]) -> None:
    model = _build(folder_of("tied"), targets)
    assert {name.split(".")[-2] for name in model.weights.named(POLICY)} == leaves
    (model(_batch(), (POLICY,), 1.0).logprobs_N * _weights()).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.weights.named(POLICY).values())


def test_bitfit_trains_the_biases(folder_of: Callable[[str], Path]) -> None:
    model = _build(folder_of("biased"), kind=AdapterKind.bitfit)
    names = [f"model.layers.{i}.self_attn.{k}_proj.bias" for i in range(2) for k in "qkv"]
    assert sorted(model.weights.named(POLICY)) == sorted(names)
    one = _build(folder_of("biased"), "q_proj", AdapterKind.bitfit)
    assert len(one.weights.named(POLICY)) == 2
    with pytest.raises(ModelError, match="no parameter to train"):
        _build(folder_of("tied"), kind=AdapterKind.bitfit)


def test_a_bfloat16_base_has_float32_copies(folder_of: Callable[[str], Path]) -> None:
    folder, batch = folder_of("tied"), _batch()
    half, wide = _build(folder, dtype=Dtype.bfloat16), _build(folder)
    for model in (half, wide):
        _shake(model, POLICY, 1)
        _shake(model, CRITIC, 2)
    assert {p.dtype for p in half.weights.base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.parameters_of(POLICY)} == {torch.float32}
    found, expected = (m(batch, (POLICY, REFERENCE, CRITIC), 1.0) for m in (half, wide))
    assert found.logprobs_N.dtype == torch.float32
    assert (found.logprobs_N - expected.logprobs_N).abs().mean() < 0.05
    assert (found.reference_N - expected.reference_N).abs().mean() < 0.05
    for outputs in (found, expected):
        (outputs.logprobs_N * _weights() + 0.1 * outputs.values_N).sum().backward()
    for name, parameter in wide.weights.named(POLICY).items():
        grad = half.weights.named(POLICY)[name].grad
        assert grad.dtype == torch.float32
        assert torch.cosine_similarity(grad.flatten(), parameter.grad.flatten(), dim=0) > 0.98


def test_at_rest_the_base_has_its_own_parameters(folder_of: Callable[[str], Path]) -> None:
    """Names in a checkpoint are then those of the copies."""
    model = _build(folder_of("tied"))
    own = {id(p) for p in model.weights.named(POLICY).values()}
    model(_batch(), (POLICY,), 1.0)
    assert not own & {id(p) for p in model.weights.base.parameters()}
    assert {n.split(".")[2] for n, p in model.named_parameters() if id(p) in own} == {POLICY}


@pytest.mark.parametrize("kind", [AdapterKind.full, AdapterKind.lora])
def test_a_checkpoint_has_no_frozen_weight(folder_of: Callable[[str], Path], kind: AdapterKind) -> None:
    """Not by a second name either: the head is tied, and shared with the layer that computes log-probs."""
    model = _build(folder_of("tied"), kind=kind)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(model.state_dict()) == trained
