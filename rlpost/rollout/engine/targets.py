"""Finds where a running vLLM model holds the checkpoint's parameters, by names, without importing vLLM.

    linear layers (q, k and v stacked in one)   their weights behind a kernel, their biases as parameters
    embeddings and head                         the table, and on a CPU the packed copies that kernels compute with
    everything else that has parameters         norms, for instance

What is not found here cannot be swapped, and an update that names it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rlpost.rollout.engine.live_layer import LiveLayer
from rlpost.rollout.engine.live_parameter import LiveParameter
from rlpost.rollout.engine.shards import ALL, Part, Rank, piece, stacked

Base = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """Live tensors of equal content, and the checkpoint's parameters whose rows are stacked in them, top to bottom.

    Rows below those are the vocabulary's padding, which is zero.
    """

    live: tuple[LiveLayer | LiveParameter, ...]
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return self.live[0].name


def targets(model: nn.Module, base: Base) -> Iterator[Target]:
    """Everything of a vLLM model that can be written; each of the checkpoint's parameters is in one target at most."""
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    tables: dict[int, list[tuple[str, Any]]] = {}  # tied layers have one weight
    for name, layer in model.named_modules():
        method = type(getattr(layer, "quant_method", None)).__name__
        if method == "UnquantizedLinearMethod":
            yield from _linear(name, layer, _names(name, fused), base)
        elif method == "UnquantizedEmbeddingMethod":
            tables.setdefault(id(layer.weight), []).append((name, layer))
        elif method == "NoneType":
            yield from _parameters(name, layer, base)
    for tied in tables.values():
        yield from _table(tied, base)


def _names(name: str, fused: Mapping[str, Sequence[str]]) -> list[str]:
    """The checkpoint's names of the modules that are stacked in a layer."""
    parent, _, leaf = name.rpartition(".")
    return [f"{parent}.{part}" for part in fused[leaf]] if leaf in fused else [name]


def _linear(name: str, layer: Any, modules: Sequence[str], base: Base) -> Iterator[Target]:
    weight = LiveLayer(name, layer)
    yield from _stacked_target(weight, layer, [f"{module}.weight" for module in modules], base)
    if getattr(layer, "bias", None) is not None:
        bias = LiveParameter(f"{name}.bias", layer.bias, layer.params_dtype)
        yield from _stacked_target(bias, layer, [f"{module}.bias" for module in modules], base)


def _stacked_target(
    live: LiveLayer | LiveParameter, layer: Any, names: Sequence[str], base: Base
) -> Iterator[Target]:
    """The target of a linear layer's weight or bias; none if the checkpoint has it otherwise."""
    rank, local = Rank(layer.tp_rank, layer.tp_size), list(layer.output_partition_sizes)
    if any(name not in base for name in names):
        return
    try:
        columns = piece(base[names[0]].shape[1], live.shape[1], rank) if len(live.shape) == 2 else ALL
        if len(names) == 1:
            rows = [stacked(_sections(layer, base[names[0]].shape[0]), local, rank)]
        else:
            rows = [
                (piece(base[name].shape[0], size, rank),) for name, size in zip(names, local, strict=True)
            ]
    except ValueError:
        return
    yield Target((live,), tuple(Part(name, r, columns) for name, r in zip(names, rows, strict=True)))


def _sections(layer: Any, rows: int) -> list[int]:
    """The sections of a parameter that the checkpoint has as one: q, k and v of some models, gate and up."""
    if hasattr(layer, "total_num_kv_heads"):
        keys = layer.total_num_kv_heads
        return [layer.total_num_heads * layer.head_size, keys * layer.head_size, keys * layer.v_head_size]
    return list(layer.output_sizes) if len(layer.output_partition_sizes) > 1 else [rows]


def _table(tied: Sequence[tuple[str, Any]], base: Base) -> Iterator[Target]:
    """The vocabulary's table, with every kernel that holds a packed copy of it, and the head's bias."""
    stored = next((name for name, _ in tied if f"{name}.weight" in base), None)
    name, layer = tied[0]
    rows = slice(layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index)
    if stored is not None:
        kernels = [LiveLayer(each, its) for each, its in tied if hasattr(its, "cpu_linear")]
        table = LiveParameter(name, layer.weight, layer.params_dtype)
        yield Target((table, *kernels), (Part(f"{stored}.weight", (rows,)),))
    for name, layer in tied:
        if getattr(layer, "bias", None) is not None and f"{name}.bias" in base:
            bias = LiveParameter(f"{name}.bias", layer.bias, layer.params_dtype)
            yield Target((bias,), (Part(f"{name}.bias", (rows,)),))


def _parameters(module: str, layer: nn.Module, base: Base) -> Iterator[Target]:
    """A module's own parameters, if the checkpoint has them under the same names and every rank holds them whole."""
    for leaf, parameter in layer.named_parameters(prefix=module, recurse=False):
        if leaf in base and base[leaf].shape == parameter.shape != ():
            yield Target((LiveParameter(leaf, parameter, parameter.dtype),), (Part(leaf),))
