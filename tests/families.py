"""Random small models of many families, with the bundled tokenizer: what a user's model may be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlpost.weights.models import TINY, TOKENIZER_FILES

VOCAB = 584
WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    **WIDTHS,
    **HEADS,
    **ENDS,
}
HEAD_32: dict[str, Any] = {"head_dim": 32}
WINDOW = 16  # tokens that a layer with a sliding window sees
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}

# By the name of a case: the settings of transformers' configuration, `model_type` among them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **HEAD_32},
    "qwen2": {"model_type": "qwen2", "hidden_size": 128},
    "qwen3": {"model_type": "qwen3", **HEAD_32},
    "mistral": {"model_type": "mistral", **HEAD_32, "sliding_window": None},
    "mistral, window": {"model_type": "mistral", **HEAD_32, "sliding_window": WINDOW},
    "gemma2": {
        "model_type": "gemma2",
        **HEAD_32,
        "sliding_window": WINDOW,
        "layer_types": LOCAL_AND_GLOBAL,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **HEAD_32,
        "sliding_window": WINDOW,
        "layer_types": LOCAL_AND_GLOBAL,
        "query_pre_attn_scalar": 20,
    },
    "phi": {"model_type": "phi", "hidden_size": 128, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"model_type": "phi3", "hidden_size": 128},
    "olmo": {"model_type": "olmo", "hidden_size": 128, "clip_qkv": 2.0},
    "olmo2": {"model_type": "olmo2", "hidden_size": 128},
    "smollm3": {"model_type": "smollm3", "hidden_size": 128, "no_rope_layers": [1, 0]},
    "gpt_neox": {"model_type": "gpt_neox", "hidden_size": 128, "num_key_value_heads": 4, "rotary_pct": 0.25},
    "mixtral": {"model_type": "mixtral", **HEAD_32, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"model_type": "qwen3_moe", **HEAD_32, **EXPERTS, "moe_intermediate_size": 48},
    "olmoe": {"model_type": "olmoe", "hidden_size": 128, **EXPERTS},
}
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")


def targets(name: str) -> str:
    """`lora.target_modules` for the case: attention alone where the rest is experts."""
    return "q_proj,k_proj,v_proj,o_proj" if name in MIXTURES else "all-linear"


def write_family(folder: Path, name: str, **changes: Any) -> Path:
    """Write a random model of the case `name`, in float32, with every norm and bias at random too."""
    settings = {**SIZES, **FAMILIES[name], **changes}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    for file in (*TOKENIZER_FILES, "tokenizer_config.json", "chat_template.jinja"):
        if (TINY / file).is_file():
            shutil.copy(TINY / file, folder)
    return folder
