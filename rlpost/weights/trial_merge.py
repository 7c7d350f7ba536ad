"""Tries a kind of adapter on a model before a run: PEFT builds it on some layers, and it is merged with random values.

What fails here would fail at the first swap: sizes that do not divide a layer's, settings that PEFT refuses, and merges
that are not all that the kind does (some kinds also change a layer's bias).
"""

from __future__ import annotations

import json
import re
import warnings
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
            model, adjusted = _built(lora, names, base)
        except Exception as error:  # PEFT's kinds raise anything, from KeyError to ImportError
            text = " ".join(str(error).split()) or type(error).__name__
            raise AdapterError(
                f"PEFT cannot build lora.kind={described(lora)} on this model: {text[:300]}. Give other lora.*"
            ) from error
        if adjusted:
            raise AdapterError(
                f"PEFT would build another adapter than lora.kind={described(lora)}: {adjusted[0]} Give other lora.*"
            )
        config = model.peft_config["default"].to_dict()
        adapter = Adapter.create(config, get_peft_model_state_dict(model, save_embedding_layers=False), 0)
        layers = PeftLayers(adapter.config, adapter.tensors, base, names)
        for parameter in layers.shapes:
            layers.merged(parameter, base[parameter])


def _built(lora: LoraConfig, names: list[str], base: BaseWeights) -> tuple[PeftModel, list[str]]:
    """The model with the adapter, and what PEFT says about sizes that it replaced by others."""
    tree: Any = linear_tree(base, names)
    tree.config = json.loads(
        (base.folder / "config.json").read_text()
    )  # IA3 chooses modules by the architecture
    config = PeftConfig.from_peft_type(target_modules=names, **TABLE[lora.kind].peft_settings(lora))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(tree, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=_MOVED)
    return model, [str(each.message) for each in told if "Adjusted" in str(each.message)]


def _check_patterns(lora: LoraConfig, modules: Sequence[str]) -> None:
    """Refuse patterns that match no module, which PEFT ignores, and scalings with which a module would not learn."""
    for setting, values in lora.settings.items():
        for pattern, value in (
            values.items() if _PATTERNS.fullmatch(setting) and isinstance(values, dict) else ()
        ):
            key = f"lora.settings.{setting}: {pattern!r}"
            try:
                matches = re.compile(rf"(.*\.)?({pattern})").fullmatch
            except re.error as error:
                raise AdapterError(
                    f"{key} is no regular expression ({error}). Give a module's name, such as v_proj."
                ) from error
            if not any(map(matches, modules)):
                raise AdapterError(
                    f"{key} matches none of the {len(modules)} modules that are adapted, such as {modules[0]}. PEFT"
                    " would ignore it."
                )
            if setting == "alpha_pattern" and isinstance(value, (int, float)) and not value > 0:
                raise AdapterError(f"{key} has the scaling {value}. Give a value above 0.")
