"""The teacher beside the policy: as an adapter of the base and as another model; what a student learns from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, ROLES, TEACHER
from rlpost.config.schema import AdapterKind, AdapterStart, AlgoName, Config, Dtype, LoraConfig
from rlpost.errors import AdapterError
from rlpost.learner import update
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from rlpost.types import Ending, Finish, Trajectory, Turn
from rlpost.weights.adapters import Adapter
from tests.learner_data import VOCAB, random_episodes, small_config, with_algorithm, write_small_model
from tests.unit.learner.test_update import PlainBackend

LORA = LoraConfig(rank=4, alpha=8.0)
ROWS = [Row(t.token_ids, t.loss_mask) for t in random_episodes(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def _batch() -> MicroBatch:
    return collate(ROWS, slot_starts(ROWS), [Group(0, (i,)) for i in range(len(ROWS))])


def _shaken(model: ActorCritic, seed: int = 1) -> ActorCritic:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters_of(POLICY):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _adapter(folder: Path, lora: LoraConfig, seed: int = 1) -> Adapter:
    model = _shaken(actor_critic.build(folder, Dtype.float32, lora, 0, (POLICY,), None), seed)
    return Adapter.create(*model.weights.export(), version=1)


def _taught(folder: Path, teacher: Adapter | Path, lora: LoraConfig = LORA) -> ActorCritic:
    return actor_critic.build(folder, Dtype.float32, lora, 0, ROLES, None, (), teacher)


def _plain(folder: Path, temperature: float, adapter: Path | None = None) -> torch.Tensor:
    """Log-probs row by row, by transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()
    found = []
    for row in ROWS:
        with torch.no_grad():
            logits = model(torch.tensor([list(row.token_ids)])).logits[0]
        table = torch.log_softmax(logits.double() / temperature, dim=-1)
        found += [table[t - 1, row.token_ids[t]] for t, counted in enumerate(row.mask) if counted]
    return torch.stack(found).float()


OTHERS = {
    "rank": LoraConfig(rank=2, alpha=5.0),
    "rslora": LoraConfig(kind=AdapterKind.rslora, rank=8, alpha=4.0),
    "dora": LoraConfig(kind=AdapterKind.dora, rank=3, alpha=6.0),
    "modules": LoraConfig(rank=4, alpha=8.0, target_modules="q_proj,down_proj"),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_a_lora_of_another_form_has_its_own_log_probs(
    folder: Path, other: str, fused: bool, tmp_path: Path
) -> None:
    """Of another rank, scaling, kind or choice of modules than the policy, whose own stay as they were."""
    adapter = _adapter(folder, OTHERS[other])
    adapter.save(tmp_path / "teacher")
    alone, model = _shaken(_taught(folder, adapter), 2), _shaken(_taught(folder, adapter), 2)
    if fused:
        model.fuse()
        assert model.fused == (other != "dora")
    found = model(_batch(), (POLICY, TEACHER), 0.7)
    torch.testing.assert_close(
        found.teacher_N, _plain(folder, 0.7, tmp_path / "teacher"), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        found.logprobs_N, alone(_batch(), (POLICY,), 0.7).logprobs_N, rtol=1e-4, atol=1e-5
    )


def test_the_policy_may_adapt_fewer_modules_than_its_teacher(folder: Path, tmp_path: Path) -> None:
    adapter = _adapter(folder, LORA)
    adapter.save(tmp_path / "teacher")
    few = LoraConfig(rank=2, alpha=4.0, target_modules="v_proj")
    model = _taught(folder, adapter, few)
    model.fuse()
    found = model(_batch(), (POLICY, REFERENCE, TEACHER), 1.0)
    torch.testing.assert_close(found.logprobs_N, _plain(folder, 1.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.teacher_N, _plain(folder, 1.0, tmp_path / "teacher"), rtol=1e-4, atol=1e-4
    )
    assert all("v_proj" in name for name in model.weights.tensors(POLICY))


def test_a_start_that_changes_the_base_is_not_subtracted_from_the_teacher(
    folder: Path, tmp_path: Path
) -> None:
    adapter = _adapter(folder, LORA)
    adapter.save(tmp_path / "teacher")
    model = _taught(folder, adapter, LoraConfig(rank=4, alpha=8.0, start=AdapterStart.pissa))
    expected = _plain(folder, 1.0, tmp_path / "teacher")
    torch.testing.assert_close(model(_batch(), (TEACHER,), 1.0).teacher_N, expected, rtol=1e-4, atol=1e-4)


def test_whole_weights_teach_whole_weights(folder: Path) -> None:
    """Full fine-tuning of some modules by full fine-tuning of others among them; an adapter is no teacher there."""
    full = LoraConfig(kind=AdapterKind.full)
    part = LoraConfig(kind=AdapterKind.full, target_modules="o_proj")
    adapter = _adapter(folder, part)
    expected = actor_critic.build(folder, Dtype.float32, part, 0, (POLICY,), adapter)
    model = _shaken(_taught(folder, adapter, full), 3)
    torch.testing.assert_close(
        model(_batch(), (TEACHER,), 1.0).teacher_N, expected(_batch(), (POLICY,), 1.0).logprobs_N
    )
    with pytest.raises(AdapterError, match=r"no parameters trained here.*rlpost merge"):
        _taught(folder, _adapter(folder, LORA), full)


def _other_model(folder: Path) -> Path:
    """A deeper and narrower model with the same vocabulary."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fused", [False, True])
def test_another_model_has_its_own_log_probs(folder: Path, fused: bool, tmp_path: Path) -> None:
    other = _other_model(tmp_path / "other")
    model = _shaken(_taught(folder, other))
    if fused:
        model.fuse()
    found = model(_batch(), (POLICY, TEACHER), 0.7)
    torch.testing.assert_close(found.teacher_N, _plain(other, 0.7), rtol=1e-4, atol=1e-4)
    assert (found.logprobs_N - found.teacher_N).abs().max() > 0.1


@pytest.mark.parametrize("model_of_its_own", [False, True])
def test_the_teacher_is_frozen_and_in_no_checkpoint(
    folder: Path, model_of_its_own: bool, tmp_path: Path
) -> None:
    teacher = _other_model(tmp_path / "other") if model_of_its_own else _adapter(folder, LORA)
    model = _taught(folder, teacher)
    assert TEACHER not in (*model.trained, *model.weights.frozen)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    without = actor_critic.build(folder, Dtype.float32, LORA, 0, ROLES, None)
    assert trained == {name for name, p in without.named_parameters() if p.requires_grad}
    assert set(model.state_dict()) == set(without.state_dict())
    assert not model(_batch(), (POLICY, TEACHER), 1.0).teacher_N.requires_grad or not model_of_its_own


def _distils() -> Config:
    cfg = with_algorithm(small_config(), AlgoName.opd)
    cfg.algo.epochs = cfg.algo.minibatches = 2
    cfg.algo.warmup_steps = 0
    return cfg


@pytest.mark.parametrize("fused", [False, True])
def test_a_student_that_is_its_teacher_learns_nothing(folder: Path, fused: bool) -> None:
    """Exactly zero gradients in every step, multi-turn episodes and several micro-batches among them."""
    adapter = _adapter(folder, LORA)
    model = actor_critic.build(folder, Dtype.float32, LORA, 0, (POLICY,), adapter, (), adapter)
    if fused:
        model.fuse()
    backend, before = PlainBackend(model, _distils()), model.weights.tensors(POLICY)
    metrics = update.update_rl(backend, random_episodes(6), _distils(), 0)  # type: ignore[arg-type]
    assert len(backend.steps) == 4
    assert all(not grad.any() for grads, _ in backend.steps for grad in grads.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.weights.tensors(POLICY).items())
    assert metrics["kl_teacher"] == metrics["kl_teacher_k3"] == 0.0


@pytest.mark.parametrize("budget", [50, 1000])
def test_the_first_step_is_that_of_plain_log_probs(folder: Path, budget: int, tmp_path: Path) -> None:
    """-mean of stop_gradient(log teacher - log policy) log policy over all sampled tokens, of every turn."""
    cfg = _distils()
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.learner.micro_batch_tokens, cfg.rollout.temperature = budget, 0.7
    adapter = _adapter(folder, OTHERS["rank"])
    adapter.save(tmp_path / "teacher")
    backend = PlainBackend(_shaken(_taught(folder, adapter), 2), cfg)
    student = backend.model(_batch(), (POLICY,), 0.7).logprobs_N
    gap = _plain(folder, 0.7, tmp_path / "teacher") - student.detach()
    backend.model.zero_grad()
    (-(gap * student).mean()).backward()
    expected = {n: p.grad.clone() for n, p in backend.model.named_parameters() if p.grad is not None}
    metrics = update.update_rl(backend, random_episodes(5), cfg, 0)  # type: ignore[arg-type]
    [(grads, rates)] = backend.steps
    assert rates[POLICY] > 0
    assert CRITIC not in {role for role, rate in rates.items() if rate}
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-3, atol=2e-5)
    assert metrics["kl_teacher"] == pytest.approx(-gap.mean().item(), rel=1e-3)
    assert metrics["tokens/teacher"] == metrics["tokens/scored"] > 0


def _drawn(logprobs_V: torch.Tensor, count: int, generator: torch.Generator) -> list[Trajectory]:
    """Episodes of one sampled token, after the prompt 1."""
    words = torch.multinomial(logprobs_V.exp(), count, replacement=True, generator=generator).tolist()
    turns = [Turn((1,), (w,), (float(logprobs_V[w]),), "", "", Finish.STOP, float(w), "X", 0) for w in words]
    return [
        Trajectory("e", "v", "train", "i", 0, i, i, i, (turn,), Ending.TERMINATED, success=False)
        for i, turn in enumerate(turns)
    ]


def test_a_student_comes_near_its_teacher(folder: Path) -> None:
    """On tokens that it samples itself the exact divergence falls to a tenth, whatever rewards they have."""
    cfg = _distils()
    cfg.rollout.temperature, cfg.algo.learning_rate, cfg.algo.epochs, cfg.algo.minibatches = 1.0, 0.5, 1, 1
    adapter = _adapter(folder, LORA, seed=4)
    model = _shaken(actor_critic.build(folder, Dtype.float32, LORA, 0, (POLICY,), None, (), adapter), 5)
    backend = PlainBackend(model, cfg)
    words = [Row((1, word), (0, 1)) for word in range(VOCAB)]
    every = collate(words, slot_starts(words), [Group(1, tuple(range(VOCAB)))])
    generator, divergences = torch.Generator().manual_seed(0), list[float]()
    for iteration in range(60):
        with torch.no_grad():
            found = model(every, (POLICY, TEACHER), 1.0)
        mine, its = found.logprobs_N, found.teacher_N
        divergences.append(float((mine.exp() * (mine - its)).sum()))
        update.update_rl(backend, _drawn(mine, 128, generator), cfg, iteration)  # type: ignore[arg-type]
    assert divergences[0] > 0.5
    assert min(divergences[-5:]) < 0.1 * divergences[0], divergences
