"""The model against plain transformers and PEFT: log-probs, isolation of the adapters, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlpost.algorithms import roles
from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.schema import AdapterKind, Dtype, LoraConfig
from rlpost.errors import AdapterError, ModelError
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.weights.adapters import Adapter
from tests.adapter_kinds import ADAPTERS, LORAS_FAMILY, small
from tests.learner_data import plain_attention, random_episodes, write_small_model

LORA = LoraConfig(rank=4, alpha=8.0)
ROWS = [Row(t.token_ids, t.loss_mask) for t in random_episodes(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture
def build(folder: Path) -> Callable[..., ActorCritic]:
    def built(
        kind: AdapterKind = AdapterKind.lora, dtype: Dtype = Dtype.float32, start: Adapter | None = None
    ) -> ActorCritic:
        return actor_critic.build(folder, dtype, small(kind, LORA), seed=0, roles=roles.ROLES, start=start)

    return built


def _batch(indices: tuple[int, ...] = (0, 1, 2, 3, 4)) -> MicroBatch:
    return collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in indices])


def _shake(model: ActorCritic, adapter: str, seed: int) -> None:
    """Give an adapter (and the value head, for the critic) random values in place of its zero start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters_of(adapter):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _export(model: ActorCritic, adapter: str = POLICY) -> Adapter:
    config = model.weights.config
    return Adapter.create(config, model.weights.tensors(adapter), 1)


def _plain_logprobs(folder: Path, adapter_folder: Path, temperature: float) -> torch.Tensor:
    """Row by row, full logits, by transformers and PEFT alone."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    found = []
    for row in ROWS:
        ids = torch.tensor([list(row.token_ids)])
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0].double() / temperature, dim=-1)
        found += [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    return torch.stack(found)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_logprobs_equal_plain_peft_on_the_exported_files(
    build: Callable[..., ActorCritic], folder: Path, kind: AdapterKind, tmp_path: Path
) -> None:
    """Packed together here, one by one there; and again after a fresh start from those files."""
    model = build(kind)
    _shake(model, POLICY, 1)
    _export(model).save(tmp_path / "adapter")
    batch = _batch()
    expected = _plain_logprobs(folder, tmp_path / "adapter", 0.8)
    for learner in (model, build(kind, start=Adapter.load(tmp_path / "adapter"))):
        logprobs = learner(batch, (POLICY,), 0.8).of(POLICY)
        torch.testing.assert_close(logprobs.double(), expected[batch.slots_N], rtol=1e-4, atol=1e-4)
    assert (expected - _plain_base(model, batch)).abs().max() > 0.05  # the adapter does something


def _plain_base(model: ActorCritic, batch: MicroBatch) -> torch.Tensor:
    found = []
    with torch.no_grad(), model.weights.using(None), plain_attention(model.weights.base) as base:
        for row in ROWS:
            table = torch.log_softmax(base(torch.tensor([row.token_ids])).logits[0].double() / 0.8, dim=-1)
            found += [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    return torch.stack(found)[batch.slots_N]


def test_company_does_not_matter(build: Callable[..., ActorCritic]) -> None:
    model = build()
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    found = model(_batch(), (POLICY, CRITIC), 1.0)
    other = [row if i == 3 else Row([33] * len(row.token_ids), row.mask) for i, row in enumerate(ROWS)]
    starts = slot_starts(ROWS)
    changed = model(collate(other, starts, [Group(0, (i,)) for i in range(5)]), (POLICY, CRITIC), 1.0)
    alone = model(_batch((3,)), (POLICY, CRITIC), 1.0)
    mine = slice(starts[3], starts[4])
    for value, among, by_itself in (
        (found.logprobs_N, changed.logprobs_N, alone.logprobs_N),
        (found.values_N, changed.values_N, alone.values_N),
    ):
        torch.testing.assert_close(among[mine], value[mine])
        torch.testing.assert_close(by_itself, value[mine], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(among, value, rtol=1e-2)


def test_value_is_of_the_state_before_the_token(build: Callable[..., ActorCritic]) -> None:
    """The sampled token itself and all after it cannot change its value; the token before it can."""
    model = build()
    _shake(model, CRITIC, 2)
    row = Row([5, 6, 7, 8, 9], [0, 0, 0, 1, 0])

    def value(token_ids: list[int]) -> float:
        micro = collate([Row(token_ids, row.mask)], [0, 1], [Group(0, (0,))])
        return float(model(micro, (CRITIC,), 1.0).values_N.detach())

    assert value([5, 6, 7, 20, 21]) == pytest.approx(value([5, 6, 7, 8, 9]))
    assert value([5, 6, 20, 8, 9]) != pytest.approx(value([5, 6, 7, 8, 9]))


def test_values_begin_at_zero_and_reference_at_the_policy(build: Callable[..., ActorCritic]) -> None:
    model = build()
    found = model(_batch(), (POLICY, REFERENCE, CRITIC), 1.0)
    assert not found.values_N.any()
    torch.testing.assert_close(found.reference_N, found.logprobs_N)
    _shake(model, POLICY, 1)
    moved = model(_batch(), (POLICY, REFERENCE), 1.0)
    torch.testing.assert_close(moved.reference_N, found.reference_N)
    assert (moved.logprobs_N - moved.reference_N).abs().max() > 0.05
    model.weights.freeze_reference()
    torch.testing.assert_close(model(_batch(), (REFERENCE,), 1.0).reference_N, moved.logprobs_N)


def _gradients(model: ActorCritic, passes: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    found = model(_batch(), passes, 1.0)
    loss = torch.zeros(())
    if found.logprobs_N is not None:
        loss = loss + found.logprobs_N.sum() + 0.3 * found.entropy_N.sum()
    if found.values_N is not None:
        loss = loss + found.values_N.square().sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("adapter", [POLICY, CRITIC])
def test_a_pass_reaches_its_own_adapter_only(build: Callable[..., ActorCritic], adapter: str) -> None:
    model = build()
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    own = {id(p) for p in model.parameters_of(adapter)}
    grads = _gradients(model, (adapter,))
    reached = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert reached == {name for name, p in model.named_parameters() if id(p) in own}


def test_joint_and_checkpointed_backward_equal_separate_ones(build: Callable[..., ActorCritic]) -> None:
    """The backward of the policy's pass runs after the critic was made live: it must not notice."""
    model = build()
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    separate = _gradients(model, (POLICY,)) | {
        name: grad for name, grad in _gradients(model, (CRITIC,)).items() if grad is not None
    }
    joint = _gradients(model, (POLICY, CRITIC))
    model.checkpoint_activations()
    checkpointed = _gradients(model, (POLICY, CRITIC))
    for name, grad in separate.items():
        for other in (joint[name], checkpointed[name]):
            if grad is None:
                assert other is None
            else:
                torch.testing.assert_close(other, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*LORAS_FAMILY, AdapterKind.oft])
def test_fused_layers_equal_pefts_own(build: Callable[..., ActorCritic], kind: AdapterKind) -> None:
    model = build(kind)
    _shake(model, POLICY, 1)
    _shake(model, CRITIC, 2)
    passes = (POLICY, REFERENCE, CRITIC)
    before, grads_before = model(_batch(), passes, 1.0), _gradients(model, (POLICY, CRITIC))
    model.fuse()
    assert model.fused == (kind in (AdapterKind.lora, AdapterKind.rslora))
    after, grads_after = model(_batch(), passes, 1.0), _gradients(model, (POLICY, CRITIC))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads_after, grads_before, rtol=1e-3, atol=2e-4)


def test_a_layer_by_itself_equals_pefts_own(build: Callable[..., ActorCritic]) -> None:
    """What a model of another family gets: its own decoder layers around fused LoRA layers."""
    model = build()
    _shake(model, POLICY, 1)
    layer, inputs = model.weights.layers[0], torch.randn(2, 3, model.weights.layers[0].in_features)
    expected = layer(inputs)
    model.fuse()
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_an_empty_micro_batch_gives_zero_gradients(build: Callable[..., ActorCritic], fused: bool) -> None:
    """Not none: every rank must bring a gradient of every parameter to the reduction."""
    model = build()
    if fused:
        model.fuse()
    found = model(collate([], [0], []), (POLICY, CRITIC), 1.0)
    (found.logprobs_N.sum() + found.values_N.sum()).backward()
    for name in (POLICY, CRITIC):
        for parameter in model.parameters_of(name):
            assert parameter.grad is not None
            assert not parameter.grad.any()


@pytest.mark.parametrize("fused", [False, True])
def test_bfloat16_base_keeps_float32_adapters(build: Callable[..., ActorCritic], fused: bool) -> None:
    model, wide = build(dtype=Dtype.bfloat16), build()
    if fused:
        model.fuse()
    for learner in (model, wide):
        _shake(learner, POLICY, 1)
        _shake(learner, CRITIC, 2)
    trained = [p for name in (POLICY, CRITIC) for p in model.parameters_of(name)]
    assert {p.dtype for p in trained} == {torch.float32}
    assert next(model.weights.base.parameters()).dtype == torch.bfloat16
    found, expected = (m(_batch(), (POLICY, CRITIC), 1.0) for m in (model, wide))
    assert found.logprobs_N.dtype == found.values_N.dtype == torch.float32
    assert (found.logprobs_N - expected.logprobs_N).abs().mean() < 0.05


def test_random_start_follows_the_seed(folder: Path) -> None:
    def start(seed: int) -> str:
        return _export(
            actor_critic.build(folder, Dtype.float32, LoraConfig(rank=4), seed, (POLICY,), None)
        ).fingerprint

    assert start(0) == start(0) != start(1)


def test_the_policy_is_the_same_without_a_critic(build: Callable[..., ActorCritic], folder: Path) -> None:
    alone, among = actor_critic.build(folder, Dtype.float32, LORA, 0, (POLICY,), None), build()
    assert alone.trained == (POLICY,)
    assert not any(part in name for name, _ in alone.named_parameters() for part in (CRITIC, REFERENCE))
    assert alone.parameters_of(CRITIC) == [] != among.parameters_of(CRITIC)
    assert _export(alone).fingerprint == _export(among).fingerprint
    grads, expected = _gradients(alone, (POLICY,)), _gradients(among, (POLICY,))
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])


def test_wrong_start_adapters_are_refused(build: Callable[..., ActorCritic], folder: Path) -> None:
    adapter = _export(build())
    for lora, reason in (
        (LoraConfig(rank=8, alpha=8.0), "r=4"),
        (LoraConfig(rank=4, alpha=9.0), "lora_alpha"),
        (LoraConfig(kind=AdapterKind.rslora, rank=4, alpha=8.0), "use_rslora"),
        (LoraConfig(rank=4, alpha=8.0, target_modules="q_proj"), "differ in name"),
    ):
        with pytest.raises(AdapterError, match=reason):
            actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), adapter)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        actor_critic.load_base(tmp_path, Dtype.float32)


def test_zero_3_finds_every_tensor_of_what_the_passes_give() -> None:
    """It hooks the backward of a module's outputs, and passes over those of a dataclass."""
    from deepspeed.runtime.zero.utils import apply_to_tensors_only

    seen: list[torch.Tensor] = []
    given = Outputs(torch.ones(1), torch.ones(2), values_N=torch.ones(3))
    found = apply_to_tensors_only(lambda tensor: seen.append(tensor) or tensor, given)
    assert isinstance(found, Outputs)
    assert [len(tensor) for tensor in seen] == [1, 2, 3]
    assert found.reference_N is None
