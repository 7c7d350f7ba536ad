"""The settings that a kind of adapter has in PEFT: those of `lora.settings`, and those of an adapter to start from.

LoRA has an allow list here, as in `rlpost.weights.adapter_settings`. The settings of other kinds are read from PEFT's
own configuration classes; PEFT is imported for them only, because the import takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rlpost.config.adapter_kinds import FULL, REFUSED, TABLE, Kind
from rlpost.config.keys import did_you_mean, refusal
from rlpost.config.schema import AdapterKind, LoraConfig
from rlpost.errors import AdapterError, ConfigError
from rlpost.weights.adapter_settings import named

# LoRA's settings with PEFT's defaults, without its starts.
_OF_LORA: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
_PATTERNS = ("rank_pattern", "alpha_pattern")
_UNTRIED = (
    "with others, PEFT may not save all that the adapter needs, or its passes may differ from its merge"
)
# A run starts at the base's own weights.
_STARTS = ("init_weights", "init_ia3_weights")


def own_settings(peft_type: str) -> dict[str, Any]:
    """PEFT's settings that say what an adapter of the kind computes, with PEFT's defaults.

    Left out are the choice of modules, the start, dropout, names and metadata.
    """
    if peft_type == "LORA":
        return dict(_OF_LORA)
    if peft_type == FULL:
        return {}
    from peft import LoraConfig as PeftLora
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    shared = {field.name for field in dataclasses.fields(PeftLora)} - {"r", *_PATTERNS}
    return {
        field.name: _default(field)
        for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])
        if field.name not in {*shared, *_STARTS} and "dropout" not in field.name
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def check_settings_of_kind(lora: LoraConfig) -> None:
    """Raises ConfigError for names in `lora.settings` that the kind does not have or that another setting gives."""
    refusals = [
        refusal(f"lora.settings.{name}", value, *_refused(name, lora.kind))
        for name, value in lora.settings.items()
        if name not in TABLE[lora.kind].free
    ]
    if refusals:
        raise ConfigError("\n".join(refusals))


def _refused(name: str, kind: AdapterKind) -> tuple[str, str]:
    """Why `name` may not be in `lora.settings`, and what to do."""
    row = TABLE[kind]
    if name == row.rank:
        return "lora.rank gives it", "give lora.rank"
    if name == row.alpha:
        return "lora.alpha gives it", "give lora.alpha"
    if name in row.settings:
        return f"lora.kind={kind.name} gives it", "leave it out, or choose another lora.kind"
    if "dropout" in name:
        return "two passes of one policy must give the same log-probs", "leave it out"
    if name in own_settings(row.peft_type):
        return f"lora.kind={kind.name} is trained with PEFT's default alone: {_UNTRIED}", "leave it out"
    remedy = did_you_mean(name, list(row.free))
    remedy = remedy or (f"choose from {', '.join(row.free)}" if row.free else "leave it out")
    return f"lora.kind={kind.name} has no such setting that a run can give", remedy


def trains_parameter(lora: LoraConfig, parameter: str) -> bool:
    """Whether a kind of whole parameters with `lora` trains a parameter, by its name in the checkpoint."""
    module, _, leaf = parameter.rpartition(".")
    chosen = lora.target_modules
    return TABLE[lora.kind].trains in (None, leaf) and (
        chosen == "all-linear" or named((name.strip() for name in chosen.split(",")), module)
    )


def check_start(config: Mapping[str, Any], lora: LoraConfig) -> None:
    """Raises AdapterError unless a start adapter has the kind, the size, the scaling and the settings of `lora`."""
    row = TABLE[lora.kind]
    if (config["peft_type"] == FULL) != row.whole:
        its_form, wanted = ("an adapter", "whole weights") if row.whole else ("whole weights", "an adapter")
        raise AdapterError(
            f"The start holds {its_form}, and lora.kind={lora.kind.value} trains {wanted}. Write the start as a model"
            " (rlpost merge) and give model=FOLDER in place of adapter=, or give the lora.kind it was trained with."
        )
    its, asked = _its_settings(config), {**own_settings(row.peft_type), **row.peft_settings(lora)}
    compared = its if its["peft_type"] == row.peft_type else ["peft_type"]
    # PEFT chooses a setting that is null by the model.
    differing = [key for key in compared if asked[key] is not None and its[key] != asked[key]]
    if differing:
        raise AdapterError(
            f"The start adapter has {_listed(its, differing)}; the settings lora.* say {_listed(asked, differing)}."
            f" {_remedy(its)}"
        )


def _its_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The kind of an adapter and its settings. A missing setting has PEFT's default. Null is an empty pattern."""
    peft_type = config["peft_type"]
    its = {"peft_type": peft_type}
    for key, default in own_settings(peft_type).items():
        value = config.get(key, default)
        its[key] = {} if value is None and isinstance(default, dict) else value
    return its


def _listed(settings: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key}={settings[key]}" for key in keys)


def _remedy(its: Mapping[str, Any]) -> str:
    """What to give to train an adapter with these settings."""
    kinds = [kind for kind, row in TABLE.items() if row.peft_type == its["peft_type"] and _makes(row, its)]
    if not kinds:
        reason = REFUSED.get(its["peft_type"].lower(), "it has settings that no lora.kind has")
        return (
            f"A run does not train it: {reason}. Start without an adapter, or evaluate this one: task=eval."
        )
    row = TABLE[kinds[0]]
    words = [f"lora.kind={kinds[0].value}"]
    words += [f"lora.rank={its[row.rank]}"] if row.rank is not None else []
    words += [f"lora.alpha={its[row.alpha]}"] if row.alpha is not None else []
    defaults = {**own_settings(row.peft_type), **row.defaults.get("lora.settings", {})}
    more = {key: its[key] for key in row.free if its[key] != defaults[key]}
    words += [f"lora.settings='{json.dumps(more)}'"] if more else []
    return f"Give those it was trained with: {' '.join(words)}"


def _makes(row: Kind, its: Mapping[str, Any]) -> bool:
    """Whether a run of the row can have `its`, by the settings that are compared (a start is not)."""
    given = {row.rank, row.alpha, *row.free}
    fixed = {**own_settings(row.peft_type), **row.settings}
    compared = [key for key in fixed if key in its and key not in given and fixed[key] is not None]
    return all(its[key] == fixed[key] for key in compared)
