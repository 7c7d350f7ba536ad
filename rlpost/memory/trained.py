"""How many numbers a role trains, by `lora.kind`."""

from __future__ import annotations

import math

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import LoraConfig
from rlpost.memory.model_shape import ModelShape
from rlpost.weights.adapter_settings import named
from rlpost.weights.kind_settings import trains_parameter


def trained_numbers(shape: ModelShape, lora: LoraConfig) -> int:
    """The numbers of one role's adapter, or of its own copy of the parameters.

    LoRA, rsLoRA and DoRA: rank x (in + out) a layer, and with DoRA a magnitude an output. Whole kinds: the parameters.
    Other kinds count as 0, since only PEFT knows their numbers, and these are few beside the model.
    """
    kind = TABLE[lora.kind]
    if kind.whole:
        chosen = (size for name, size in shape.parameters.items() if trains_parameter(lora, name))
        return sum(math.prod(size) for size in chosen)
    if kind.peft_type != "LORA":
        return 0
    magnitudes = 1 if kind.settings["use_dora"] else 0
    return sum(
        _rank(lora, module) * (rows + columns) + magnitudes * rows
        for module, (rows, columns) in adapted(shape, lora).items()
    )


def adapted(shape: ModelShape, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """The linear layers (out, in) that carry an adapter, by module."""
    return {m: size for m, size in shape.linear.items() if trains_parameter(lora, f"{m}.weight")}


def _rank(lora: LoraConfig, module: str) -> int:
    """The rank of a module's adapter, which `rank_pattern` in `lora.settings` may set."""
    pattern = lora.settings.get("rank_pattern") or {}
    return next((int(rank) for name, rank in pattern.items() if named([name], module)), lora.rank)
