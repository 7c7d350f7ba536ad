"""Whether an adapter's parameters are those of a model: names, shapes and blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlpost.config.adapter_kinds import FULL
from rlpost.config.schema import Config
from rlpost.errors import AdapterError
from rlpost.validate.target_modules import some
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import base_weights
from rlpost.weights.stored_model import StoredModel
from rlpost.weights.update import WeightUpdate, weight_update


def fitting_update(
    cfg: Config, named: str, adapter: Adapter, folder: Path, model: StoredModel
) -> WeightUpdate:
    """The adapter's weight update. `folder` and `model`: the model's.

    `named`: the setting that names the adapter, with its value.

    Raises AdapterError unless the model has every parameter that the adapter changes, in its shape.
    """
    try:
        update = weight_update(adapter, base_weights(folder, cfg.lora.base))
    except AdapterError as error:
        raise AdapterError(
            f"{named} (trained on {_base_of(adapter)}) does not fit model={cfg.model}. {error}"
        ) from error
    shapes, stored = update.shapes, model.shapes
    wrong = [
        f"{name} is {shape} there and {stored.get(name, 'absent')} here"
        for name, shape in shapes.items()
        if stored.get(name) != shape
    ]
    reason = f"{len(wrong)} of its {len(shapes)} parameters do not fit: {some(wrong)}" if wrong else None
    reason = reason or _of_fewer_blocks(adapter.config, shapes, stored)
    if reason is not None:
        raise AdapterError(
            f"{named} is of another model than model={cfg.model}. It was trained on {_base_of(adapter)},"
            f" and {reason}. Give the model that it was trained on."
        )
    return update


def _base_of(adapter: Adapter) -> str:
    return adapter.config.get("base_model_name_or_path") or "a model that it does not name"


def _of_fewer_blocks(settings: Mapping[str, Any], names: Iterable[str], stored: Iterable[str]) -> str | None:
    """Why an adapter whose parameters all fit belongs to another model: it has the first blocks only, by accident.

    With a regular expression, exceptions, or PEFT's `layers_to_transform` it is deliberate.
    """
    chosen = settings.get("exclude_modules") or settings.get("layers_to_transform") is not None
    if chosen or settings["peft_type"] == FULL or not isinstance(settings.get("target_modules"), list):
        return None
    its, blocks = _blocks(names), _blocks(stored)
    if its != set(range(len(its))) or len(its) >= len(blocks):
        return None
    return (
        f"it has the first {len(its)} of {len(blocks)} blocks alone (if that is meant, say so in adapter_config.json:"
        f" layers_to_transform = {sorted(its)})"
    )


def _blocks(names: Iterable[str]) -> set[int]:
    numbers = (re.search(r"(?:^|\.)(\d+)\.", name) for name in names)
    return {int(found[1]) for found in numbers if found}
