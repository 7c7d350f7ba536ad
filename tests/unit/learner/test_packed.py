"""Which architectures may be packed: those of which others would give wrong log-probs are refused at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
)

from rlpost.algorithms.roles import POLICY
from rlpost.cluster.precision import TORCH_DTYPES
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import ModelError
from rlpost.learner.model import actor_critic, packing_check
from rlpost.learner.model.packed_attention import AttentionLayout
from rlpost.learner.model.packing import Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group
from tests.families import FAMILIES, VOCAB, targets, write_family

ENDS: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {**ENDS, "hidden_size": 32}


def write(folder: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def bloom() -> PreTrainedConfig:
    """Has attention of its own, and takes and ignores what it does not know."""
    return BloomConfig(**SIZES, n_layer=2, n_head=4)


def mamba() -> PreTrainedConfig:
    """Remembers what came before without attention."""
    return MambaConfig(**SIZES, num_hidden_layers=2, state_size=4)


def gpt_neo() -> PreTrainedConfig:
    """Knows a few kinds of attention by name."""
    return GPTNeoConfig(**SIZES, num_layers=2, num_heads=4, attention_types=[[["global"], 2]])


@pytest.mark.parametrize("dtype", list(TORCH_DTYPES))
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (bloom, r"BloomForCausalLM.*does not hand `layout` to its attention"),
        (mamba, r"MambaForCausalLM"),
        (gpt_neo, r"architecture gpt_neo does not take packed attention"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    config: Callable[[], PreTrainedConfig], reason: str, dtype: Dtype, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        actor_critic.load_base(write(tmp_path, config()), dtype)


@pytest.mark.parametrize("dtype", list(TORCH_DTYPES))
def test_attention_that_takes_a_layout_is_enough(dtype: Dtype, tmp_path: Path) -> None:
    """Positions that are learnt, biases, another norm: none of it matters."""
    actor_critic.load_base(write(tmp_path, GPT2Config(**ENDS, n_embd=32, n_layer=2, n_head=4)), dtype)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_packs_and_gives_the_log_probs_of_transformers(family: str, tmp_path: Path) -> None:
    """48 tokens, three times the sliding windows; the bare base, since the adapter starts at it."""
    lora = LoraConfig(rank=4, alpha=8.0, target_modules=targets(family))
    model = actor_critic.build(write_family(tmp_path, family), Dtype.float32, lora, 0, (POLICY,), None)
    model.fuse()
    ids = torch.randint(4, VOCAB, (48,), generator=torch.Generator().manual_seed(9))
    rows = [Row(ids.tolist(), (0,) + (1,) * 47)]
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found = model(collate(rows, slot_starts(rows), [Group(0, (0,))]), (POLICY,), 1.0).logprobs_N
        expected = base(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [GraniteConfig(**SIZES, num_hidden_layers=1, num_attention_heads=4, logits_scaling=2.0)],
    ids=["granite"],
)
def test_scaled_logits_are_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its head scales the logits \(logits_scaling\).*choose another"):
        actor_critic.load_base(write(tmp_path, config), Dtype.float32)


def test_adapted_modules_that_the_checkpoint_names_otherwise(tmp_path: Path) -> None:
    """Transformers finds the weights of a body that was saved alone; an engine's swap would not."""
    write_family(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"14 adapted modules are no linear layers of that name in the checkpoint"
    ):
        actor_critic.build(tmp_path, Dtype.float32, LoraConfig(), 0, (POLICY,), None)


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    config = LlamaConfig(**SIZES, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return actor_critic.load_base(write(tmp_path, config), Dtype.float32)


def test_layers_that_do_not_hand_the_layout_on(llama: Any) -> None:
    forward = llama.model.layers[1].self_attn.forward
    llama.model.layers[1].self_attn.forward = lambda layout=None, **kwargs: forward(**kwargs)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*missing.*'layout'"):
        packing_check.check_packing(llama)


def test_rows_that_see_one_another_are_found(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a layout that forgets where segments begin."""
    whole = AttentionLayout.of
    monkeypatch.setattr(
        AttentionLayout, "of", lambda s: whole([packed_into_one(s)]) if len(s) > 1 else whole(s)
    )
    with pytest.raises(ModelError, match="see one another"):
        packing_check.check_packing(llama)


def packed_into_one(segments: Any) -> Any:
    return type(segments[0])(0, sum(s.length for s in segments), None)
