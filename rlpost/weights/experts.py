"""Mixtures of experts: which modules of a checkpoint are their blocks, from the names alone.

transformers stacks the experts of a block in tensors of three dimensions, vLLM in tensors of its own, and both have
routers of their own. So neither experts nor routers are linear layers that an adapter here can name, and a block with
experts stays as it is. Everything else of such a model, attention above all, is adapted as in any model.
"""

from __future__ import annotations

from collections.abc import Iterable

EXPERTS = "experts"  # the module of the experts in a block, in every family of transformers


def expert_blocks(names: Iterable[str]) -> frozenset[str]:
    """The modules that hold experts, such as model.layers.0.mlp, from the names of tensors or modules."""
    return frozenset(name.partition(f".{EXPERTS}.")[0] for name in names if f".{EXPERTS}." in name)


def in_experts(module: str, blocks: Iterable[str]) -> bool:
    """Whether a module lies in one of `blocks`: an expert, a shared expert, or the router."""
    return any(module.startswith(f"{block}.") for block in blocks)
