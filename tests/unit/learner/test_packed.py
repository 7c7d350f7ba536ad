"""Which architectures may be packed: those of which others would give wrong log-probs are refused at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
)

from rlpost.cluster.precision import TORCH_DTYPES
from rlpost.config.schema import Dtype
from rlpost.errors import ModelError
from rlpost.learner.model import actor_critic, packing_check
from rlpost.learner.model.packed_attention import AttentionLayout

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
