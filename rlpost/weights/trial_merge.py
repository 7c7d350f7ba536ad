"""Tries a kind of adapter on a model before a run: PEFT builds it on some layers, and it is merged with random values.

What fails here would fail at the first swap: sizes that do not divide a layer's, settings that PEFT refuses, and merges
that are not all that the kind does (some kinds also change a layer's bias).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
_FEEDFORWARD = "feedforward_modules"  # IA3's choice of modules whose inputs it scales


def try_merge(lora: LoraConfig, modules: Sequence[str], base: BaseWeights) -> dict[str, tuple[int, ...]]:
    """Put `lora` on one module of each sort in `modules`, and merge it. Returns the shapes of what it trains, by name.

    Modules of a sort have one last name (q_proj, down_proj, ...) and the same patterns of `lora.settings`.

    Raises AdapterError if a run with `lora` would fail.
    """
    _check_patterns(lora, modules)
    names = list({_sort(lora, module): module for module in reversed(modules)}.values())
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
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def _sort(lora: LoraConfig, module: str) -> tuple[str, ...]:
    """What tells the modules apart that may get adapters of different sizes or forms."""
    return module.rpartition(".")[2], *(pattern for pattern, matches in _choices(lora) if matches(module))


def _built(lora: LoraConfig, names: list[str], base: BaseWeights) -> tuple[PeftModel, list[str]]:
    """The model with the adapter, and what PEFT says about sizes that it replaced by others."""
    tree: Any = linear_tree(base, names)
    tree.config = json.loads(
        (base.folder / "config.json").read_text()
    )  # IA3 chooses modules by the architecture
    # A regular expression: IA3 would ask of a list that it has the very words of `feedforward_modules`.
    targets = "|".join(map(re.escape, names))
    config = PeftConfig.from_peft_type(target_modules=targets, **TABLE[lora.kind].peft_settings(lora))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(tree, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=_MOVED)
    return model, [str(each.message) for each in told if "Adjusted" in str(each.message)]


def _check_patterns(lora: LoraConfig, modules: Sequence[str]) -> None:
    """Refuse patterns that match no module, which PEFT ignores, and scalings with which a module would not learn."""
    for key, matches in _choices(lora):
        if not any(map(matches, modules)):
            raise AdapterError(
                f"{key} matches none of the {len(modules)} modules that are adapted, such as {modules[0]}. PEFT would"
                " ignore it."
            )
    alphas = lora.settings.get("alpha_pattern")
    for pattern, value in alphas.items() if isinstance(alphas, dict) else ():
        if isinstance(value, (int, float)) and not value > 0:
            raise AdapterError(
                f"lora.settings.alpha_pattern: {pattern!r} has the scaling {value}. Give a value above 0."
            )


def _choices(lora: LoraConfig) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Every choice of modules in `lora.settings`: its words, and whether it matches a module, as PEFT has it.

    Without IA3's default, which names modules that some models lack.
    """
    default = TABLE[lora.kind].defaults.get("lora.settings", {}).get(_FEEDFORWARD)
    for setting, value in lora.settings.items():
        key = f"lora.settings.{setting}: "
        if _PATTERNS.fullmatch(setting) and isinstance(value, dict):
            yield from ((f"{key}{name!r}", _matcher(f"{key}{name!r}", rf"(.*\.)?({name})")) for name in value)
        elif setting == _FEEDFORWARD and isinstance(value, str) and value != default:
            yield f"{key}{value!r}", _matcher(f"{key}{value!r}", value)
        elif setting == _FEEDFORWARD and isinstance(value, list):
            yield from ((f"{key}{end!r}", partial(_ends, end=str(end))) for end in value)


def _matcher(key: str, pattern: str) -> Callable[[str], object]:
    try:
        return re.compile(pattern).fullmatch
    except re.error as error:
        raise AdapterError(
            f"{key} is no regular expression ({error}). Give a module's name, such as v_proj."
        ) from error


def _ends(module: str, end: str) -> bool:
    return module.endswith(end)
