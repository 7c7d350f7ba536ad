"""The checkpoint's names of an engine's parameters, by vLLM's own map from stored names to its own.

    gpt_neox.layers.0.attention.dense.weight   stored, and PEFT's name
    model.layers.0.attention.dense.weight      in vLLM

Most models have the same names in both. This file never imports vllm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def checkpoint_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """The name in the checkpoint by vLLM's name, for every tensor in `stored`.

    vLLM's map also stacks q, k and v under one name. Here each keeps its own (`get_rename_mapper`).
    """
    if not hasattr(model, "hf_to_vllm_mapper"):
        return {name: name for name in stored}
    mapper = model.hf_to_vllm_mapper.get_rename_mapper()
    mapped = ((mapper.map_name(name), name) for name in stored)
    return {live: name for live, name in mapped if live is not None}
