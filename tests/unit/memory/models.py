"""A model whose sizes are small enough to count by hand, and settings for it."""

from __future__ import annotations

from typing import Any

from rlpost.config.schema import AlgoName, Config, Dtype, KlPlace, Task
from rlpost.memory.model_shape import ModelShape
from rlpost.weights.stored_model import StoredModel

LINEAR = {  # (out, in)
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (16, 8),
    "mlp.up_proj": (16, 8),
    "mlp.down_proj": (8, 16),
}
LINEAR_COUNT = 2 * (64 + 32 + 32 + 64 + 3 * 128)  # 1,152
NORMS = 2 * 2 * 8 + 8
TABLE = 32 * 8
COUNT = LINEAR_COUNT + NORMS + TABLE  # 1,448


def stored_model(**changes: Any) -> StoredModel:
    """Two layers, H 8, I 16, two heads of size 4, one key-value head, 32 words, tied."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        named = {f"model.layers.{layer}.{name}.weight": shape for name, shape in LINEAR.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= named | {f"model.layers.{layer}.{name}.weight": (8,) for name in norms}
    return StoredModel(config, {n: {"dtype": "BF16", "shape": list(s)} for n, s in shapes.items()})


def shape(**changes: Any) -> ModelShape:
    return ModelShape.of(stored_model(**changes))


def settings(task: Task = Task.rl) -> Config:
    """GRPO without a reference, LoRA of rank 2, float32, one worker and one rank."""
    cfg = Config(task=task, dtype=Dtype.float32)
    cfg.lora.rank = 2
    cfg.algo.name, cfg.algo.kl = AlgoName.grpo, KlPlace.none
    return cfg
