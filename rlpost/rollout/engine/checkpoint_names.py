"""The checkpoint's names of an engine's modules, by vLLM's own map from stored names to its modules.

    gpt_neox.layers.0.attention.dense   stored, and PEFT's name
    model.layers.0.attention.dense      in vLLM

Most models have the same names in both. This file never imports vllm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def checkpoint_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """The stored module name by vLLM's, for every weight in `stored` (names of tensors in the checkpoint).

    vLLM's map also stacks q, k and v under one name. Here each module keeps its own name (`get_rename_mapper`).
    """
    mapper = model.hf_to_vllm_mapper.get_rename_mapper() if hasattr(model, "hf_to_vllm_mapper") else None
    names = {}
    for weight in stored:
        if not weight.endswith(".weight"):
            continue
        mapped = weight if mapper is None else mapper.map_name(weight)
        if mapped is not None:
            names[mapped.removesuffix(".weight")] = weight.removesuffix(".weight")
    return names
