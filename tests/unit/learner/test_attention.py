"""Packed rows against rows one by one through transformers' own attention: outputs and gradients, by model family."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlpost.algorithms import roles
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import ModelError
from rlpost.learner.model import actor_critic
from rlpost.learner.model import packed_attention as attention
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packed_attention import AttentionLayout, Segment, packed_attention
from rlpost.learner.model.packing import Row, collate, plan_micro_batches, slot_starts
from tests.learner_data import VOCAB, plain_attention

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=2),
    "tiny": lambda: LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=True),
}


def conversations() -> list[Row]:
    """Two prompts with four samples each, of one or two turns; one sample twice; one that ends early; one alone."""
    dice = random.Random(5)

    def some(count: int) -> list[int]:
        return [dice.randrange(VOCAB) for _ in range(count)]

    rows = []
    for prompt in (some(9), some(14)):
        for k in range(4):
            row, mask = list(prompt), [0] * len(prompt)
            for turn in range(1 + k % 2):
                feedback, answer = some(3 * turn), some(dice.randint(2, 9))
                row, mask = row + feedback + answer, mask + [0] * len(feedback) + [1] * len(answer)
            rows.append(Row(row, mask))
    rows.append(rows[2])
    rows.append(Row(rows[5].token_ids[:16], rows[5].mask[:16]))
    rows.append(Row(some(12), [0, 1] * 6))
    return rows


ROWS = conversations()
VARIANTS = ["one row", "several rows", "checkpointed", "cut finely", "fused", "fused, checkpointed"]


def _model(folder: Path, family: str) -> ActorCritic:
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(folder)
    model = actor_critic.build(folder, Dtype.float32, LoraConfig(rank=4, alpha=8.0), 0, roles.ROLES, None)
    for name in (POLICY, REFERENCE, CRITIC):
        for parameter in model.parameters_of(name):
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


def _row_by_row(model: ActorCritic) -> tuple[torch.Tensor, ...]:
    """Policy's log-probs and entropy, the reference's log-probs, values: full logits, one row at a time."""
    found: list[torch.Tensor] = []
    with plain_attention(model.weights.base) as base:
        for row in ROWS:
            ids = torch.tensor([row.token_ids])
            at = torch.tensor([t - 1 for t, counted in enumerate(row.mask) if counted])
            columns = []
            for name in (POLICY, REFERENCE):
                model.weights.activate(name)
                table = torch.log_softmax(base(ids).logits[0, at] / 0.8, dim=-1)
                columns += [table.gather(1, ids[0, at + 1, None])[:, 0], -(table.exp() * table).sum(1)]
            model.weights.activate(CRITIC)
            hidden = base.base_model(ids).last_hidden_state[0, at]
            values = hidden @ model.value_head.weight[0] + model.value_head.bias
            found.append(torch.stack([columns[0], columns[1], columns[2].detach(), values]))
    return tuple(torch.cat(found, dim=1))


def _gradients(model: ActorCritic, found: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Of a sum in which every token has a weight of its own."""
    model.zero_grad()
    weights = torch.randn(len(found[0]), generator=torch.Generator().manual_seed(1))
    logprobs, entropy, _, values = found
    (weights * (logprobs + 0.3 * entropy + values.square())).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _packed(model: ActorCritic, budget: int) -> tuple[torch.Tensor, ...]:
    starts = slot_starts(ROWS)
    flat = [torch.zeros(starts[-1]) for _ in range(4)]
    [plan] = plan_micro_batches(ROWS, range(len(ROWS)), budget, 1)
    assert any(group.prefix for batch in plan for group in batch)
    for groups in plan:
        micro = collate(ROWS, starts, groups)
        found = model(micro, (POLICY, REFERENCE, CRITIC), 0.8)
        parts = (found.logprobs_N, found.entropy_N, found.reference_N.detach(), found.values_N)
        flat = [f.index_put((micro.slots_N,), part) for f, part in zip(flat, parts, strict=True)]
    return tuple(flat)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(
    "variant", ["one row", "several rows", "checkpointed", "cut finely", "fused", "fused, checkpointed"]
)
def test_packed_equals_row_by_row(
    family: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variant == "cut finely":  # pieces of three queries, blocks of a few pieces
        monkeypatch.setattr(attention, "QUERIES", 3)
        monkeypatch.setattr(attention, "BLOCK", 200)
    model = _model(tmp_path, family)
    expected = _row_by_row(model)
    expected_grads = _gradients(model, expected)
    if variant.startswith("fused"):
        model.fuse()
        assert model.fused
    if variant.endswith("checkpointed"):
        model.checkpoint_activations()
    found = _packed(model, 60 if variant == "several rows" else 1000)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    grads = _gradients(model, found)
    assert set(grads) == set(expected_grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-3, atol=1e-3)


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: list[Segment], scaling: float
) -> torch.Tensor:
    """By definition, token by token, in a loop."""
    heads, shared = q.shape[1], k.shape[1]
    out = torch.zeros_like(q)
    for segment in segments:
        behind = segment.behind
        before = list(range(behind.start, behind.start + behind.length)) if behind is not None else []
        for t in range(segment.start, segment.start + segment.length):
            seen = before + list(range(segment.start, t + 1))
            for h in range(heads):
                g = h * shared // heads
                weights = torch.softmax(scaling * (k[seen, g] @ q[t, h]), dim=0)
                out[t, h] = weights @ v[seen, g]
    return out


@pytest.mark.parametrize("path", [packed_attention, attention._fused])
def test_attention_by_definition(path: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, forward and backward; `_fused` is what a GPU runs."""
    monkeypatch.setattr(attention, "QUERIES", 4)
    root, other = Segment(0, 5, None), Segment(5, 7, None)
    segments = [root, other, Segment(12, 3, root), Segment(15, 6, root), Segment(21, 1, other)]
    generator = torch.Generator().manual_seed(0)
    q, k, v, slopes = (
        torch.randn(22, n, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (4, 2, 2, 4)
    )
    found = path(q, k, v, AttentionLayout.of(segments), 0.7)
    expected = _dense(q, k, v, segments, 0.7)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad((found * slopes.detach()).sum(), (q, k, v))
    torch.testing.assert_close(grads, torch.autograd.grad((expected * slopes.detach()).sum(), (q, k, v)))


def test_scores_grow_with_what_is_seen() -> None:
    """One prompt of 1,000 tokens, 64 answers of 100: a T x T mask would hold 54 million entries."""
    root = Segment(0, 1000, None)
    layout = AttentionLayout.of([root, *(Segment(1000 + 100 * i, 100, root) for i in range(64))])
    needed = 1000 * 1001 // 2 + 64 * (100 * 1000 + 100 * 101 // 2)
    computed = sum(block.bias_SCK.numel() for block in layout.blocks)
    assert needed < computed < 1.25 * needed
    assert max(block.bias_SCK.numel() for block in layout.blocks) <= attention.BLOCK


def test_attention_that_is_not_plain_is_refused(tmp_path: Path) -> None:
    config = Qwen2Config(
        **SIZES, num_key_value_heads=1, use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = actor_critic.build(tmp_path, Dtype.float32, LoraConfig(rank=4, alpha=8.0), 0, (POLICY,), None)
    [[groups]] = plan_micro_batches(ROWS, [0], 100, 1)
    with pytest.raises(ModelError, match="8 tokens back"):
        model(collate(ROWS, slot_starts(ROWS), groups), (POLICY,), 1.0)
