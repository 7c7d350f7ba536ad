"""Tries a kind of adapter on a model before a run: PEFT builds it on some layers, and it is merged with random values.

What fails here would fail at the first swap: sizes that do not divide a layer's, settings that PEFT refuses, and merges
that are not all that the kind does (some kinds also change a layer's bias).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from rlpost.config.adapter_kinds import TABLE, described
from rlpost.config.schema import LoraConfig
from rlpost.errors import AdapterError
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.peft_merge import PeftLayers, linear_tree

_MOVED = 0.01  # the deviation of the random values that stand for training
_PATTERNS = re.compile(r".*_pattern")  # PEFT's settings by module


def try_merge(lora: LoraConfig, modules: Sequence[str], base: BaseWeights) -> None:
    """Put `lora` on the first module of each name in `modules` (q_proj, down_proj, ...), and merge it.

    Raises AdapterError if a run with `lora` would fail.
    """
    _check_patterns(lora, modules)
    names = list({module.rpartition(".")[2]: module for module in reversed(modules)}.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = _built(lora, names, base)
        except Exception as error:  # PEFT's kinds raise anything, from KeyError to ImportError
            text = " ".join(str(error).split()) or type(error).__name__
            raise AdapterError(
                f"PEFT cannot build lora.kind={described(lora)} on this model: {text[:300]}. Give other lora.*"
            ) from error
        config = model.peft_config["default"].to_dict()
        adapter = Adapter.create(config, get_peft_model_state_dict(model, save_embedding_layers=False), 0)
        layers = PeftLayers(adapter.config, adapter.tensors, base, names)
        for name in names:
            layers.merged(name, base[f"{name}.weight"])


def _built(lora: LoraConfig, names: list[str], base: BaseWeights) -> PeftModel:
    tree: Any = linear_tree(base, names)
    tree.config = json.loads(
        (base.folder / "config.json").read_text()
    )  # IA3 chooses modules by the architecture
    config = PeftConfig.from_peft_type(target_modules=names, **TABLE[lora.kind].peft_settings(lora))
    model = get_peft_model(tree, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=_MOVED)
    return model


def _check_patterns(lora: LoraConfig, modules: Sequence[str]) -> None:
    """Refuse a pattern that matches no module, which PEFT ignores."""
    for setting, values in lora.settings.items():
        for pattern in values if _PATTERNS.fullmatch(setting) and isinstance(values, dict) else ():
            if not any(re.fullmatch(rf"(.*\.)?({pattern})", module) for module in modules):
                raise AdapterError(
                    f"lora.settings.{setting}: {pattern!r} matches none of the {len(modules)} modules that are"
                    f" adapted, such as {modules[0]}. PEFT would ignore it."
                )
