"""Every kind of adapter that a run trains, small enough for models whose widths are multiples of 16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import AdapterKind, LoraConfig

_RANKS = {
    "oft": 8,
    "boft": 4,
    "c3a": 8,
    "tinylora": 64,  # 13 numbers cannot solve every bandit of a random model
    "miss": 4,
    "fourierft": 60,
    "waveft": 60,
    "unilora": 512,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "road": {"group_size": 8},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "supertuning": {"sparsity": 0.9},
}
ADAPTERS = tuple(kind for kind in AdapterKind if not TABLE[kind].whole)
LORAS_FAMILY = (AdapterKind.lora, AdapterKind.rslora, AdapterKind.dora, AdapterKind.rsdora)


def small(kind: AdapterKind, lora: LoraConfig | None = None) -> LoraConfig:
    """The settings of `kind`, with the modules (and, in LoRA's family, the size) of `lora`."""
    lora = replace(lora or LoraConfig(rank=4, alpha=8.0), kind=kind)
    if kind in LORAS_FAMILY:
        return lora
    defaults = TABLE[kind].defaults
    return replace(
        lora,
        rank=_RANKS.get(kind.name, 4),
        alpha=defaults.get("lora.alpha", lora.alpha),
        settings={**defaults.get("lora.settings", {}), **_SETTINGS.get(kind.name, {})},
    )


def documented(kind: AdapterKind) -> str:
    """The kind's line in the table of docs/adapters.md."""
    row = TABLE[kind]
    more = row.defaults.get("lora.settings", {})
    size, scaling = (
        "-" if name is None else f"`{name}` ({defaults:g})"
        for name, defaults in (
            (row.rank, row.defaults.get("lora.rank", LoraConfig().rank)),
            (row.alpha, row.defaults.get("lora.alpha", LoraConfig().alpha)),
        )
    )
    settings = ", ".join(f"`{name}: {str(value).lower()}`" for name, value in more.items()) or "-"
    what = row.what.replace("*", "\\*")
    return f"| `{kind.value}` | {row.source} | {what} | {size} | {scaling} | {settings} | {row.learning_rate:g} |"
