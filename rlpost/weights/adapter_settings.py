"""Checks adapter_config.json.

LoRA has an allow list: for each setting, the values with which a merge is right. `adapters.merged_weight` follows LoRA,
rsLoRA and DoRA; PEFT's own merge also follows ranks and alphas by module. Any other setting of PEFT could give the same
tensors another meaning, so a setting that is not listed must be off (null, false or empty). PEFT writes every setting
of its version, used or not.

FULL is rlpost's own kind, not PEFT's: whole tensors by the checkpoint's names, from full fine-tuning.

Other kinds have no list. Settings that they share with LoRA follow LoRA's rules (so only linear layers, and no biases,
may be adapted). Their own settings are left to PEFT, whose merge is compared with the output of its layers
(`rlpost.weights.peft_merge`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlpost.config.adapter_kinds import FULL
from rlpost.errors import AdapterError

# Initialisations of PEFT that subtract the adapter's first value from the base. The others (true, false, gaussian, eva,
# orthogonal, mica) do not change the base.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_STARTS = ("gaussian", "eva", "orthogonal", "mica")

# Kinds that have the form of adapters of linear layers in PEFT's classes, but cannot be merged.
_MORE_THAN_A_MERGE = {
    "POLY": "it mixes its parts by the number of a task, which comes with each input",
    "SHADOW": "it runs a second model beside the base",
    "XLORA": "it mixes several adapters by what the input is",
}
# Settings that LoRA has too, but that mean something different in each kind.
_KINDS_OWN = frozenset({"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern"})


def check_settings(config: Mapping[str, Any]) -> None:
    """Raises AdapterError for a kind of adapter that cannot be merged, and for a setting that a merge does not follow.

    A missing setting has PEFT's default: older versions do not write `use_rslora` and `use_dora`.
    """
    if "peft_type" not in config:
        raise AdapterError("The adapter config lacks peft_type; it is not PEFT's.")
    if config["peft_type"] == FULL:
        for key, value in config.items():
            _check_setting(key, value, _FULL_RULES)
        return
    if config["peft_type"] != "LORA":
        _check_other_kind(config)
        return
    missing = [key for key in ("r", "lora_alpha") if key not in config]
    if missing:
        raise AdapterError(f"The adapter config lacks {', '.join(missing)}; it is not PEFT's.")
    for key, value in config.items():
        _check_setting(key, value)


def _check_other_kind(config: Mapping[str, Any]) -> None:
    """Check a kind other than LoRA with PEFT's own table of kinds. PEFT is imported here only, because the import takes
    seconds and LoRA does not need it."""
    from peft import LoraConfig as PeftLora
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    kind = config["peft_type"]
    its = f"The adapter is of PEFT's kind {kind!r}"
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(f"{its}, which PEFT {__version__} does not have.")
    own = set(inspect.signature(PEFT_TYPE_TO_CONFIG_MAPPING[kind]).parameters)
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    reason = _MORE_THAN_A_MERGE.get(kind)
    if "target_modules" not in own or not isinstance(tuner, type) or not issubclass(tuner, BaseTuner):
        reason = reason or "it does not change the weights of linear layers (prompts, prefixes and the like)"
    if reason is not None:
        raise AdapterError(
            f"{its}, which cannot be merged into an engine's weights: {reason}. Train a kind that adapts linear layers,"
            " such as LoRA or OFT."
        )
    shared = set(inspect.signature(PeftLora).parameters) - _KINDS_OWN
    for key, value in config.items():
        if key in shared or key not in own:
            _check_setting(key, value)


def named(names: Iterable[str], module: str) -> bool:
    """Whether one of `names` is the module's whole name or its end, as PEFT matches a list of target modules."""
    return any(module == name or module.endswith(f".{name}") for name in names)


@dataclass(frozen=True)
class _Rule:
    holds: Callable[[Any], bool]
    allowed: str  # the allowed values in words


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_off(value: Any) -> bool:
    """Whether the value is null, false or empty. 0 is not off, because it could be a setting's value."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _are(kind: type | Callable[[Any], bool]) -> Callable[[Any], bool]:
    holds = kind if not isinstance(kind, type) else lambda item: isinstance(item, kind)
    return lambda value: isinstance(value, list) and all(holds(item) for item in value)


def _maps_to(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(holds(item) for item in value.values())


def _or(*choices: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(holds(value) for holds in choices)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_NULL = _is(type(None))
_FLAG = _Rule(_is(bool), "true or false")
_TEXT = _Rule(_or(_NULL, _is(str)), "text or null")
_NAMES = _Rule(_or(_NULL, _is(str), _are(str)), "text, a list of texts or null")
_OFF = _Rule(_is_off, "null, false or empty")

_RULES: dict[str, _Rule] = {
    "peft_type": _Rule(lambda value: value == "LORA", "LORA"),
    # Settings that the merge follows.
    "r": _Rule(lambda value: _is_count(value) and value >= 1, "a whole number from 1"),
    "lora_alpha": _Rule(_is_number, "a finite number"),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    # Other values for the modules that a pattern names; PEFT merges these.
    "rank_pattern": _Rule(
        _or(_is_off, _maps_to(lambda value: _is_count(value) and value >= 1)), "ranks from 1 by module"
    ),
    "alpha_pattern": _Rule(_or(_is_off, _maps_to(_is_number)), "finite numbers by module"),
    # Choice of the adapted modules. The tensors name these themselves, and are compared with the model.
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "layers_to_transform": _Rule(
        _or(_NULL, _is_count, _are(_is_count)), "a number, a list of numbers or null"
    ),
    "ensure_weight_tying": _FLAG,  # ties embeddings and heads, whose tensors are refused
    # Settings that only matter before the adapter is saved.
    "init_lora_weights": _Rule(
        _or(_is(bool), lambda value: isinstance(value, str) and value.lower() in _STARTS),
        f"true, false or one of {', '.join(_STARTS)}",
    ),
    "eva_config": _Rule(_or(_NULL, _is(dict)), "an object or null"),
    "lora_dropout": _Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    # Names and metadata.
    "base_model_name_or_path": _TEXT,
    "revision": _TEXT,
    "task_type": _TEXT,
    "peft_version": _TEXT,
    "megatron_core": _TEXT,  # a module's name; only used with `megatron_config`
    "auto_mapping": _Rule(_or(_NULL, _is(dict)), "an object or null"),
    "inference_mode": _FLAG,
    "qalora_group_size": _Rule(_is_count, "a whole number"),  # only used with `use_qalora`
    # `none` is off.
    "bias": _Rule(lambda value: value == "none", "none"),
}


_FULL_RULES: dict[str, _Rule] = {
    "peft_type": _Rule(lambda value: value == FULL, FULL),
    **{key: _RULES[key] for key in ("target_modules", "base_model_name_or_path")},
}


def _check_setting(key: str, value: Any, rules: Mapping[str, _Rule] = _RULES) -> None:
    if key == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(_CHANGES_THE_BASE):
        raise AdapterError(_another_base(value))
    rule = rules.get(key, _OFF)
    if rule.holds(value):
        return
    raise AdapterError(
        f"Adapter setting {key} = {value!r} is not supported: merging the tensors could give another policy than the"
        f" adapter's. Supported: {rule.allowed}. Save an adapter that does without, or mend {key} in"
        " adapter_config.json where it does not say what the adapter was trained with."
    )


def _another_base(start: str) -> str:
    """The message for a start that changes the base, with two ways out.

    tests/unit/test_adapter_settings.py runs both ways out with PEFT for PiSSA, and the conversion for OLoRA.

    CorDA, LoRA-GA and LoftQ need data, gradients or bitsandbytes, so only PEFT's source was checked for them.
    """
    reason = (
        f"Adapter setting init_lora_weights = {start!r}: this start of PEFT changes the base (to about W0 - s B A,"
        " A and B as they start), so the adapter belongs to that base and not to the model's own weights."
    )
    save_base = (
        "save that base as a model of its own (`peft_model.unload().save_pretrained(FOLDER)`, and its tokenizer),"
        " give model=FOLDER, and set init_lora_weights to true in adapter_config.json."
    )
    if start.lower().startswith("loftq"):
        return f"{reason} Either train with another start, or {save_base}"
    return (
        f"{reason} Either let PEFT convert it to a plain LoRA of twice the rank, where the untrained adapter was saved:"
        " `peft_model.save_pretrained(OUT, path_initial_model_for_weight_conversion='/whole/path/to/the/untrained')`;"
        f" or {save_base}"
    )
