"""The memory plan against sums made by hand, against PEFT's and autograd's own tensors, and its order of sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import (
    AdapterKind,
    AlgoName,
    BaseKind,
    Config,
    Dtype,
    KlPlace,
    LoraConfig,
    Optimizer,
    Reference,
    Task,
)
from rlpost.memory import engine, learner
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import Process
from rlpost.memory.plan import memory_plan, savings
from rlpost.memory.trained import trained_numbers
from rlpost.weights.models import TINY
from tests.unit.memory.models import COUNT, LINEAR_COUNT, TABLE, settings, shape

LORA_COUNT = 2 * 2 * ((8 + 8) + 2 * (4 + 8) + (8 + 8) + 2 * (16 + 8) + (8 + 16))  # rank 2: 512


def part(process: Process, name: str) -> int:
    [size] = [each.size for each in (*process.host, *process.device) if each.name == name]
    return size


def test_the_sizes_are_read_and_a_tied_head_counts_once() -> None:
    found = shape()
    assert (found.count, found.linear_count, found.head) == (COUNT, LINEAR_COUNT, 4)
    assert found.cache_numbers == 2 * 2 * 1 * 4


def test_a_model_of_unknown_sizes_plans_too_little_and_not_too_much() -> None:
    unknown = shape(num_hidden_layers=None, hidden_size=None, num_attention_heads=None)
    assert (unknown.layers, unknown.width, unknown.head) == (0, 0, 0)
    assert memory_plan(settings(), unknown).size() < memory_plan(settings(), shape()).size()


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(rank=8),
        LoraConfig(rank=3, target_modules="q_proj,down_proj"),
        LoraConfig(rank=8, kind=AdapterKind.dora),
        LoraConfig(rank=8, settings={"rank_pattern": {"o_proj": 2}}),
    ],
    ids=["all", "two modules", "dora", "pattern"],
)
def test_an_adapter_has_the_numbers_that_peft_gives_it(lora: LoraConfig) -> None:
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlpost.learner.model.peft_weights import peft_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
        adapted = get_peft_model(model, peft_config(lora))
    counted = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert trained_numbers(ModelShape.read(TINY), lora) == counted


def test_whole_kinds_train_the_parameters() -> None:
    assert trained_numbers(shape(), LoraConfig(kind=AdapterKind.full)) == COUNT
    assert trained_numbers(shape(), LoraConfig(kind=AdapterKind.full, target_modules="norm")) == 8
    assert trained_numbers(shape(), LoraConfig(kind=AdapterKind.bitfit)) == 0


def test_a_rank_holds_base_roles_gradients_and_moments() -> None:
    cfg = settings()
    assert trained_numbers(shape(), cfg.lora) == LORA_COUNT
    rank = learner.learner_rank(cfg, shape())
    assert part(rank, "base weights") == 4 * COUNT
    assert part(rank, "weights of the roles") == 4 * LORA_COUNT
    assert part(rank, "gradients") == 4 * LORA_COUNT
    assert part(rank, "optimizer states") == 8 * LORA_COUNT


def test_a_critic_is_trained_and_a_reference_is_held() -> None:
    cfg = settings()
    cfg.algo.name, cfg.algo.kl, cfg.algo.reference = AlgoName.ppo, KlPlace.reward, Reference.start
    rank = learner.learner_rank(cfg, shape())
    assert part(rank, "weights of the roles") == 3 * 4 * LORA_COUNT
    assert part(rank, "optimizer states") == 2 * 8 * LORA_COUNT


def test_a_teacher_of_its_own_is_a_second_base() -> None:
    cfg = settings()
    cfg.algo.name, cfg.dtype = AlgoName.opd, Dtype.bfloat16
    assert part(learner.learner_rank(cfg, shape(), shape()), "base weights") == 2 * 2 * COUNT


def test_full_fine_tuning_holds_the_base_and_a_copy_with_its_moments() -> None:
    cfg = settings()
    cfg.lora.kind, cfg.dtype = AdapterKind.full, Dtype.bfloat16
    rank = learner.learner_rank(cfg, shape())
    assert part(rank, "base weights") == 2 * COUNT
    assert part(rank, "weights of the roles") == 4 * COUNT
    assert part(rank, "optimizer states") == 8 * COUNT


def test_nf4_holds_four_bits_and_loads_the_whole_model_first() -> None:
    cfg = settings()
    cfg.lora.base = BaseKind.nf4
    rank = learner.learner_rank(cfg, shape())
    held = part(rank, "base weights")
    assert held == 4 * COUNT - int(LINEAR_COUNT * (4 - (0.5 + 1 / 64 + 4 / 64 / 256)))
    assert held + part(rank, "an optimizer step, or loading") == 4 * COUNT
    assert engine.weights(cfg, shape()) == 4 * (COUNT + TABLE)


@pytest.mark.parametrize(
    ("stage", "gradients", "states"), [(0, 400, 800), (1, 600, 600), (2, 600, 600), (3, 200, 600)]
)
def test_zero_shards_over_two_ranks(stage: int, gradients: int, states: int) -> None:
    assert learner.gradients(100, 2, stage) == gradients
    assert learner.optimizer_states(100, Optimizer.adamw, 2, stage) == states


def test_a_base_in_the_pages_of_its_files_refuses_nothing() -> None:
    cfg = settings()
    narrow = replace(cfg, dtype=Dtype.bfloat16)
    for each, certain in ((cfg, True), (narrow, False)):
        rank = learner.learner_rank(each, shape())
        assert [p.certain for p in rank.host if p.name == "base weights"] == [certain]


def test_zero_3_shards_the_base() -> None:
    cfg = settings()
    cfg.learner.workers, cfg.learner.zero_stage = 2, 3
    rank = learner.learner_rank(cfg, shape())
    assert part(rank, "base weights") == 2 * COUNT
    assert part(rank, "an optimizer step, or loading") == 2 * COUNT


def test_an_engine_keeps_a_packed_copy_of_a_tied_table_on_a_cpu() -> None:
    cfg = settings()
    assert engine.weights(cfg, shape()) == 4 * (COUNT + TABLE)
    assert engine.weights(cfg, shape(tie_word_embeddings=False)) == 4 * COUNT
    cfg.rollout.gpus = 1.0
    assert engine.weights(cfg, shape()) == 4 * COUNT


def test_the_driver_and_a_worker_hold_a_tokenizer_and_a_rank_none() -> None:
    small, large = (
        memory_plan(settings(), shape(vocab_size=1_000)),
        memory_plan(settings(), shape(vocab_size=3_000)),
    )
    for name in ("driver", "rollout worker"):
        assert part(large.named(name), "tokenizer") == 3 * part(small.named(name), "tokenizer") > 3_000_000
    assert "tokenizer" not in [each.name for each in large.named("learner rank").host]


def test_an_engines_step_takes_prompts_and_words() -> None:
    cfg = settings()
    cfg.rollout.episodes, cfg.rollout.workers, cfg.rollout.max_model_len = 10, 2, 50
    assert engine.step_bytes(cfg, shape()) == 5 * 50 * 4 * (2 * 8 + 3 * 16) + 5 * 32 * (4 + 4 * 4)


def test_what_is_on_a_gpu_is_not_the_machines() -> None:
    cfg = settings()
    on_cpu = memory_plan(cfg, shape())
    cfg.rollout.gpus = cfg.learner.gpus = 1.0
    plan = memory_plan(cfg, shape())
    assert plan.size() < on_cpu.size()
    assert plan.named("learner rank").device_size(certain_only=True) >= 4 * COUNT
    assert [each.name for each in plan.named("rollout worker").host] == ["libraries", "tokenizer"]


def test_an_evaluation_has_no_learner_and_an_endpoint_no_engine() -> None:
    cfg = settings(Task.eval)
    names = [process.name for process in memory_plan(cfg, shape()).processes]
    assert names == ["driver", "Ray's daemons", "rollout worker"]
    cfg.eval.endpoint = "http://localhost:1/v1"
    assert "rollout worker" not in [process.name for process in memory_plan(cfg, shape()).processes]


def saved_bytes(folder: Path, kind: AdapterKind, dtype: Dtype, rows: int, length: int) -> int:
    """What autograd keeps of one micro-batch, in bytes: every storage once, without parameters and the layout."""
    from rlpost.learner.model import actor_critic
    from rlpost.learner.model.packing import Row, collate, plan_micro_batches, slot_starts

    model = actor_critic.build(folder, dtype, LoraConfig(kind=kind, rank=4), 0, (POLICY,), None)
    if kind is AdapterKind.lora:
        model.fuse()
        assert model.fused
    dice = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, 512, (rows, length + 1), generator=dice).tolist()
    batch = [Row(tuple(ids), (0,) + (1,) * length) for ids in drawn]
    [[micro]] = plan_micro_batches(batch, range(rows), rows * length, 1)
    packed = collate(batch, slot_starts(batch), micro)
    kept: dict[int, int] = {}
    frozen = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs = model(packed, (POLICY,), 1.0).of(POLICY)
        assert logprobs.requires_grad
        total = sum(kept.values())
    return total


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.full])
def test_activations_are_those_that_autograd_keeps(
    random_model: Path, kind: AdapterKind, dtype: Dtype
) -> None:
    cfg = settings()
    cfg.dtype, cfg.lora.kind, cfg.lora.rank = dtype, kind, 4
    cfg.rollout.max_model_len, cfg.learner.micro_batch_tokens = 128, 512
    model = ModelShape.read(random_model)
    each = {Dtype.float32: 4, Dtype.bfloat16: 2}[dtype]
    passing = 512 * (
        3 * each * model.inner + 3 * 4 * model.width
    )  # of the backward pass, which keeps nothing
    planned = learner.activations(cfg, model) - passing
    assert planned == pytest.approx(saved_bytes(random_model, kind, dtype, 4, 128), rel=0.1)


def test_checkpointing_keeps_the_residual_stream_and_one_layer() -> None:
    cfg = settings()
    plain = learner.activations(cfg, shape())
    cfg.learner.gradient_checkpointing = True
    assert learner.activations(cfg, shape()) < plain


def test_policy_and_critic_keep_activations_together_only_if_they_step_together() -> None:
    cfg = settings()
    cfg.algo.name, cfg.algo.epochs, cfg.algo.minibatches = AlgoName.ppo, 1, 1
    alone = learner.activations(cfg, shape())
    cfg.algo.epochs = 2
    assert learner.activations(cfg, shape()) > 1.5 * alone


@pytest.mark.parametrize(("length", "keys"), [(100, 100), (256, 256), (512, 384), (1024, 640)])
def test_the_keys_of_a_token_are_those_of_the_pieces(length: int, keys: int) -> None:
    from rlpost.learner.model.packed_attention import AttentionLayout, Segment

    assert learner.keys_per_token(length) == keys
    blocks = AttentionLayout.of([Segment(0, length, None)]).blocks
    assert sum(block.bias_SCK.numel() for block in blocks) == keys * length


@st.composite
def configs(draw: st.DrawFn) -> Config:
    cfg = settings(draw(st.sampled_from([Task.rl, Task.sft, Task.eval])))
    cfg.algo.name = draw(st.sampled_from([AlgoName.ppo, AlgoName.grpo]))
    cfg.dtype = draw(st.sampled_from([Dtype.float32, Dtype.bfloat16]))
    cfg.lora.kind = draw(st.sampled_from([AdapterKind.lora, AdapterKind.full, AdapterKind.oft]))
    cfg.lora.base = (
        draw(st.sampled_from(list(BaseKind))) if cfg.lora.kind is AdapterKind.lora else BaseKind.stored
    )
    cfg.lora.rank = draw(st.integers(1, 8))
    cfg.learner.workers, cfg.rollout.workers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cfg.learner.zero_stage = draw(st.integers(0, 3))
    cfg.learner.optimizer = draw(st.sampled_from(list(Optimizer)))
    cfg.learner.gradient_checkpointing = draw(st.booleans())
    cfg.learner.micro_batch_tokens = draw(st.sampled_from([1024, 4096]))
    return cfg


MORE: tuple[tuple[str, str, Any], ...] = (
    ("rollout", "workers", 1),
    ("rollout", "kv_cache_gib", 1.0),
    ("rollout", "max_num_seqs", 64),
    ("learner", "micro_batch_tokens", 1000),
    ("lora", "rank", 4),
)


@given(configs())
def test_more_of_a_thing_never_takes_less(cfg: Config) -> None:
    before = memory_plan(cfg, shape())
    assert 0 < before.size(certain_only=True) <= before.size()
    for group, name, more in MORE:
        node = getattr(cfg, group)
        larger = replace(cfg, **{group: replace(node, **{name: getattr(node, name) + more})})
        after = memory_plan(larger, shape())
        assert after.size() >= before.size(), name
        assert after.size(certain_only=True) >= before.size(certain_only=True), name


@given(configs(), st.booleans())
def test_a_saving_is_what_the_plan_then_has_less(cfg: Config, certain_only: bool) -> None:
    found = savings(cfg, shape(), certain_only=certain_only)
    assert all(each.size > 0 for each in found)
    assert [each.size for each in found] == sorted((each.size for each in found), reverse=True)
    halved = [each for each in found if each.words.startswith("rollout.kv_cache_gib")]
    assert [each.size for each in halved] == ([] if certain_only else [cfg.rollout.workers * 2**29])
