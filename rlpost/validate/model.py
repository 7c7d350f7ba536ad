"""Refuses settings that do not fit the model: `lora.target_modules` and the adapter to start from or evaluate.

The checks need the model's files, so they run after `checks`, but before Ray starts, so that nobody waits for engines
that fail at their first swap. They compare names and shapes of modules, and test whether the adapter can be merged at
all. The adapter's own `base_model_name_or_path` is only shown, since folders get renamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlpost.config.keys import refusal
from rlpost.config.schema import Config, Task
from rlpost.errors import AdapterError, ConfigError
from rlpost.validate.environment import TRAINING
from rlpost.weights import models
from rlpost.weights.adapter_settings import check_start, named
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import base_weights
from rlpost.weights.update import WeightUpdate, check_merges, weight_update

ALL = "all-linear"
_SHOWN = 3  # modules named in a message

Layers = Mapping[str, tuple[int, int]]  # as in models.linear_layers


def check_model(cfg: Config, model_folder: Path) -> None:
    """Check the model and the adapter, for every task that has a model.

    Raises:
        ConfigError: lora.target_modules names modules that the model does not have or that engines do not swap.
        AdapterError: the adapter is damaged, unsupported, of another model, not mergeable, or differs from lora.*.
        ModelError: the model's files cannot be read.
    """
    if cfg.lora.target_modules == ALL and cfg.adapter is None:
        return
    layers = models.linear_layers(model_folder)
    if cfg.task is not Task.eval:
        _check_targets(cfg, layers)
    if cfg.adapter is None:
        return
    adapter = Adapter.load(Path(cfg.adapter))
    if cfg.task in TRAINING:
        check_start(adapter.config, cfg.lora)
    try:
        update = weight_update(adapter, base_weights(model_folder, cfg.lora.base))
    except AdapterError as error:
        raise AdapterError(
            f"adapter={cfg.adapter} (trained on {_base_of(adapter)}) does not fit model={cfg.model}. {error}"
        ) from error
    _check_fit(adapter, update, cfg, layers)
    check_merges(update)
    if cfg.task in TRAINING:
        _check_start_modules(adapter, cfg, layers)


def _check_targets(cfg: Config, layers: Layers) -> None:
    """Refuse target names that match no module. PEFT ignores such a name as long as another one matches."""
    has = sorted({module.rpartition(".")[2] for module in layers})
    refusals = [
        refusal(
            "lora.target_modules",
            name,
            f"model={cfg.model} has no linear layer of that name (engines do not swap embeddings and the head)",
            f"give {ALL}, or choose from {', '.join(has)}",
        )
        for name in _targets(cfg)
        if not any(named([name], module) for module in layers)
    ]
    if refusals:
        raise ConfigError("\n".join(refusals))


def _check_fit(adapter: Adapter, update: WeightUpdate, cfg: Config, layers: Layers) -> None:
    wrong = [
        f"{module} is {shape} there and {layers.get(module, 'absent')} here"
        for module, shape in update.shapes.items()
        if layers.get(module) != shape
    ]
    reason = f"{len(wrong)} of its {len(update.shapes)} modules do not fit: {_some(wrong)}" if wrong else None
    reason = reason or _of_fewer_blocks(adapter.config, update.shapes, layers)
    if reason is not None:
        raise AdapterError(
            f"adapter={cfg.adapter} is of another model than model={cfg.model}. It was trained on {_base_of(adapter)},"
            f" and {reason}. Give the model that it was trained on. (Embeddings and the head cannot be adapted.)"
        )


def _base_of(adapter: Adapter) -> str:
    return adapter.config.get("base_model_name_or_path") or "a model that it does not name"


def _of_fewer_blocks(settings: Mapping[str, Any], modules: Iterable[str], layers: Layers) -> str | None:
    """Why an adapter whose modules all fit belongs to another model: it has the first blocks only, by accident.

    With a regular expression, exceptions, or PEFT's `layers_to_transform` it is deliberate.
    """
    chosen = settings.get("exclude_modules") or settings.get("layers_to_transform") is not None
    if chosen or not isinstance(settings.get("target_modules"), list):
        return None
    its, blocks = _blocks(modules), _blocks(layers)
    if its != set(range(len(its))) or len(its) >= len(blocks):
        return None
    return (
        f"it has the first {len(its)} of {len(blocks)} blocks alone (if that is meant, say so in adapter_config.json:"
        f" layers_to_transform = {sorted(its)})"
    )


def _blocks(modules: Iterable[str]) -> set[int]:
    numbers = (re.search(r"(?:^|\.)(\d+)\.", module) for module in modules)
    return {int(found[1]) for found in numbers if found}


def _check_start_modules(adapter: Adapter, cfg: Config, layers: Layers) -> None:
    """Refuse if training with lora.* would adapt other modules than the start adapter has."""
    if cfg.lora.target_modules == ALL:
        if any("experts" in module.split(".") for module in layers):
            return  # transformers has some of these not as linear layers; the learner knows which
        wanted = set(layers)
    else:
        wanted = {module for module in layers if named(_targets(cfg), module)}
    differing = sorted(wanted ^ set(adapter.modules))
    if differing:
        its = ",".join(sorted({module.rpartition(".")[2] for module in adapter.modules}))
        raise AdapterError(
            f"The start adapter has {len(adapter.modules)} modules, lora.target_modules={cfg.lora.target_modules} means"
            f" {len(wanted)}: they differ in {_some(differing)}. Give those it was trained with:"
            f" lora.target_modules='{its}'"
        )


def _targets(cfg: Config) -> list[str]:
    names = cfg.lora.target_modules
    return [] if names == ALL else names.split(",")


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
