"""Runs the decoder layers of Llama and Qwen with rlpost.kernels. All other models keep their own forward.

    hidden ─▶ norm ─▶ q, k, v in one product ─▶ (norm) rotary ─▶ packed attention ─▶ o ─▶ + hidden
           ─▶ norm ─▶ gate, up in one product ─▶ swiglu ─▶ down ─▶ + hidden

Only the `forward` of each layer is replaced; modules, parameters and their names stay. Projections with the same input
share a stacked weight, and their own weights become views of it; weights in NF4 are stacked in each pass, and no pass
keeps them. Parameters are read directly from memory, so this is not for ZeRO-3, which gathers them only for the forward
of their own module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlpost.kernels.adapted_linear import Pair, adapted_linear
from rlpost.kernels.elementwise import rms_norm, rotary, swiglu
from rlpost.learner.model.packed_attention import AttentionLayout, packed_attention
from rlpost.learner.model.quantized_base import Nf4Linear

FAMILIES = {"LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}


class Projections:
    """Linear modules with the same input, adapted or not, as one layer: (T, I) to (T, O), outputs side by side."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.bases: list[Any] = [m.base_layer if isinstance(m, LoraLayer) else m for m in modules]
        self.weight_OI: Tensor | None = None
        self.bias_O: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        base = self.bases[0]
        return base.dtype if isinstance(base, Nf4Linear) else base.weight.dtype

    def __call__(self, x_TI: Tensor) -> Tensor:
        if any(isinstance(base, Nf4Linear) for base in self.bases):
            return adapted_linear(x_TI, self._made, _bias(self.bases), self._pairs())
        weight_OI, bias_O = self._stacked()
        return adapted_linear(x_TI, weight_OI, bias_O, self._pairs())

    def _made(self) -> Tensor:
        """The weights as one tensor that nothing keeps."""
        weights = [base.weight for base in self.bases]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _stacked(self) -> tuple[Tensor, Tensor | None]:
        """The weights as one tensor. It is rebuilt if the modules were moved and no longer hold views of it."""
        if len(self.bases) == 1:
            return self.bases[0].weight, self.bases[0].bias
        held = self.weight_OI
        begins = _begins(self.bases)
        if held is None or any(
            base.weight.data_ptr() != held[begin].data_ptr()
            for base, begin in zip(self.bases, begins, strict=True)
        ):
            held = self.weight_OI = torch.cat([base.weight.detach() for base in self.bases])
            for base, begin in zip(self.bases, begins, strict=True):
                base.weight.data = held[begin : begin + base.out_features]
            self.bias_O = _bias(self.bases)
        return held, self.bias_O

    def _pairs(self) -> list[Pair]:
        return [
            Pair(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], begin)
            for layer, begin in zip(self.modules, _begins(self.bases), strict=True)
            if isinstance(layer, LoraLayer)
            for name in layer.active_adapters
            if name in layer.lora_A  # a teacher may adapt other modules than the policy
        ]


def _begins(bases: Sequence[nn.Linear]) -> list[int]:
    return [sum(base.out_features for base in bases[:k]) for k in range(len(bases))]


def _bias(bases: Sequence[nn.Linear]) -> Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    held = next(base.bias for base in bases if base.bias is not None)
    zeros = (held.new_zeros(base.out_features) for base in bases)
    return torch.cat(
        [z if base.bias is None else base.bias.detach() for base, z in zip(bases, zeros, strict=True)]
    )


def can_fuse(module: nn.Module | None) -> bool:
    """Whether `Projections` can compute an adapted linear module: plain LoRA, not DoRA.

    A subclass of `nn.Linear` may hold another weight than it computes with (bitsandbytes' `Linear4bit` does), so only
    `Nf4Linear` is known among them.
    """
    if isinstance(module, LoraLayer):
        return not module.lora_variant and can_fuse(module.base_layer)
    return type(module) in (nn.Linear, Nf4Linear)


def fuse_layers(body: Any) -> bool:
    """Replace the forward of all decoder layers of `body` if all are of a known family; return whether it did."""
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    if body.config.model_type not in ("llama", "qwen2", "qwen3") or body.config.hidden_act != "silu":
        return False
    for layer in body.layers:
        projections = [getattr(layer.self_attn, n, None) or getattr(layer.mlp, n, None) for n in linears]
        if type(layer).__name__ not in FAMILIES or not all(can_fuse(m) for m in projections):
            return False
    for layer in body.layers:
        layer.forward = partial(_layer_forward, layer, _Parts.of(layer))
    body.norm.forward = partial(_norm, body.norm)
    return True


@dataclass(frozen=True)
class _Parts:
    qkv: Projections
    o: Projections
    gate_up: Projections
    down: Projections

    @classmethod
    def of(cls, layer: Any) -> _Parts:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            Projections(attention.q_proj, attention.k_proj, attention.v_proj),
            Projections(attention.o_proj),
            Projections(mlp.gate_proj, mlp.up_proj),
            Projections(mlp.down_proj),
        )


def _norm(module: Any, x: Tensor) -> Tensor:
    """The RMS norm of a known family over the last dimension, in the weights' dtype."""
    y = rms_norm(x.flatten(0, -2), module.weight, module.variance_epsilon).view(x.shape)
    return y.to(module.weight.dtype)


def _layer_forward(
    layer: Any,
    parts: _Parts,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    layout: AttentionLayout,
    **unused: Any,
) -> Tensor:
    """transformers' interface of a layer: (1, T, H) to (1, T, H).

    The residual stream is kept in float32. Rounding it to bfloat16 after every layer caused more than half of the
    learner's distance from the float32 model, and so from the engine.
    """
    x_TH = hidden_states[0].to(torch.promote_types(hidden_states.dtype, torch.float32))
    cos_TD, sin_TD = (table[0] for table in position_embeddings)
    x_TH = x_TH + parts.o(
        _attended(layer.self_attn, parts, _norm(layer.input_layernorm, x_TH), cos_TD, sin_TD, layout)
    )
    x_TH = x_TH + parts.down(swiglu(parts.gate_up(_norm(layer.post_attention_layernorm, x_TH))))
    return x_TH[None]


def _attended(
    attention: Any, parts: _Parts, x_TH: Tensor, cos_TD: Tensor, sin_TD: Tensor, layout: AttentionLayout
) -> Tensor:
    D = attention.head_dim
    widths = [base.out_features for base in parts.qkv.bases]
    q, k, v = (part.unflatten(-1, (-1, D)) for part in parts.qkv(x_TH).split(widths, dim=-1))
    if hasattr(attention, "q_norm"):
        q, k = _norm(attention.q_norm, q), _norm(attention.k_norm, k)
    q, k = rotary(q, cos_TD, sin_TD), rotary(k, cos_TD, sin_TD)
    seen = layout.within(getattr(attention, "sliding_window", None))
    return packed_attention(q, k, v, seen, attention.scaling).flatten(1)
