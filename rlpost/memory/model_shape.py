"""The sizes of a model that its memory depends on, from config.json and the headers of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlpost.weights.stored_model import StoredModel

FUSED_FAMILIES = ("llama", "qwen2", "qwen3")  # whose layers rlpost.learner.model.fused_layers runs
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model. Those that its config.json does not name are 0, so that the plan is too small, not too
    large."""

    layers: int
    width: int  # H, of the residual stream
    inner: int  # I, of the MLP
    heads: int
    key_value_heads: int
    head: int  # D, of one head
    words: int  # V, of the vocabulary
    tied: bool  # whether the head is the table of embeddings
    fusible: bool  # whether its layers run through rlpost.kernels under a plain LoRA
    parameters: Mapping[str, tuple[int, ...]]  # shape by name; a tied head counts once
    dtypes: frozenset[str]  # of the stored tensors, in safetensors' words: F32, BF16
    linear: Mapping[str, tuple[int, int]]  # (out, in) of the decoder's linear layers by module

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """Raises ModelError if a file of the model cannot be read."""
        return cls.of(StoredModel.read(folder))

    @classmethod
    def of(cls, model: StoredModel) -> ModelShape:
        told = model.text_config
        tied = bool(told.get("tie_word_embeddings", model.config.get("tie_word_embeddings", False)))
        width, heads = _size(told.get("hidden_size")), _size(told.get("num_attention_heads"))
        activation = told.get("hidden_act")
        return cls(
            layers=_size(told.get("num_hidden_layers")),
            width=width,
            inner=_size(told.get("intermediate_size")),
            heads=heads,
            key_value_heads=_size(told.get("num_key_value_heads")) or heads,
            head=_size(told.get("head_dim")) or (width // heads if heads else 0),
            words=_size(told.get("vocab_size")),
            tied=tied,
            fusible=told.get("model_type") in FUSED_FAMILIES and activation in (None, "silu"),
            parameters={name: shape for name, shape in model.shapes.items() if not (tied and name == _HEAD)},
            dtypes=frozenset(str(entry["dtype"]) for entry in model.entries.values()),
            linear=model.linear_layers,
        )

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    @property
    def linear_count(self) -> int:
        """The number of weights in the decoder's linear layers."""
        return sum(rows * columns for rows, columns in self.linear.values())

    @property
    def cache_numbers(self) -> int:
        """The numbers that a KV cache holds for one token: keys and values of all layers."""
        return 2 * self.layers * self.key_value_heads * self.head


def _size(told: object) -> int:
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else 0
