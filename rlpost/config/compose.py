"""Builds a typed Config from `experiment=NAME key=value ...`: the schema, an experiment's file, the command line.

    rlpost.config.schema.Config  <-  the algorithm's defaults  <-  experiments/NAME.yaml  <-  key=value ...

`resume=DIR` without an experiment takes DIR/config.yaml instead; `experiment=FILE.yaml` takes the user's own file.

`algo=NAME` (or `algo.name=NAME`; in a file: `algo: {name: NAME}`) chooses a row of rlpost.config.presets, whose
defaults form a separate layer. `algo.KEY=VALUE` sets one of its settings. The command line overrides all other layers.
`lora.kind=NAME` chooses a row of rlpost.config.adapter_kinds in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import os.path
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlpost.config.adapter_kinds import TABLE as KINDS
from rlpost.config.adapter_kinds import kind_named
from rlpost.config.experiments import experiments, settings_in
from rlpost.config.former_words import refuse_former, translated
from rlpost.config.keys import (
    describe,
    did_you_mean,
    leaves,
    refusal,
    refuse_marks,
    refuse_unknown,
    refuse_unquoted,
    schema,
)
from rlpost.config.overrides import Override, Word, parse
from rlpost.config.presets import TABLE, VARIED
from rlpost.config.schema import AdapterKind, AlgoName, Config, Task
from rlpost.config.trust import refuse_unnamed_code
from rlpost.errors import ConfigError

RESUMED = "resumed-run"
OWN_FILE = "own-file"
ALGORITHM_KEYS = ("algo", "algo.name")  # both choose an algorithm
NAMED = "compare.named"
NAMED_SETTINGS = "compare.settings"
# Settings that are paths, or may be one. `model` may be one too; weights.models expands it then.
PATHS = ("adapter", "algo.teacher", "output_dir", "resume", "retention.text", "tiny_base.start")


def compose(words: Sequence[Word]) -> Config:
    """Resolve `experiment=NAME key=value ...` to a Config. Values are typed; rlpost.validate checks their ranges.

    Raises ConfigError for a missing or unknown experiment, an unknown key, a wrong type or a malformed word, and for a
    resumed record that names code outside rlpost that the command line does not name (rlpost/config/trust.py). A
    leading `~` in a path is the home folder.
    """
    overrides = parse(words)
    name, path = _experiment_file(overrides)
    settings = translated(settings_in(path)) if name == RESUMED else settings_in(path)
    typed = [o for o in overrides if o.key != "experiment"]
    layers = [(settings, str(path)), *((o.nested(), "command line") for o in typed if o.key != "algo")]
    for layer, where in layers:
        refuse_former(leaves(layer), where)
        refuse_unknown(leaves(layer), where)
        refuse_unquoted(leaves(layer), where)
    refuse_marks(((o.key, o.value) for o in typed), "command line")
    algorithm = _algorithm(typed, settings)
    former = _kind([settings]) or Config().lora.kind
    kind = _kind([o.nested() for o in typed]) or former
    file = _for_kind(kind, settings, former)
    config = _resolve(file, algorithm, [o for o in typed if o.key not in ALGORITHM_KEYS])
    if name == RESUMED:
        refuse_unnamed_code(config, {o.key for o in typed}, path)
    if config.task is Task.compare:
        config.compare.named = sorted({*config.compare.named, *_named(typed, settings)})
    return config


def named_by(words: Sequence[Word]) -> set[str]:
    """The settings that a command line names, by dotted key. Raises ConfigError for a malformed word."""
    return {key for o in parse(words) for key, _ in leaves(o.nested())}


def to_yaml(config: Config) -> str:
    """Every setting, resolved, as YAML that `resume=` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _experiment_file(overrides: list[Override]) -> tuple[str, Path]:
    chosen = {o.key: o.value for o in overrides}
    known = experiments()
    if "experiment" in chosen:
        name = str(chosen["experiment"])
        if name in known:
            return name, known[name].path
        if name.endswith(".yaml"):
            return OWN_FILE, Path(_from_home(name))
        remedy = did_you_mean(name, list(known)) or "choose one of " + ", ".join(known)
        raise ConfigError(refusal("experiment", name, "there is no such experiment", remedy))
    if chosen.get("resume"):
        return RESUMED, Path(_from_home(str(chosen["resume"]))) / "config.yaml"
    raise ConfigError(
        refusal("experiment", "", "no experiment was chosen", "choose one of " + ", ".join(known))
    )


def _algorithm(typed: list[Override], settings: dict[str, Any]) -> AlgoName:
    """The algorithm named on the command line, else in the experiment's file, else in the schema."""
    chosen = [(o.key, o.value) for o in typed if o.key in ALGORITHM_KEYS]
    group = settings.get("algo")
    if isinstance(group, dict) and "name" in group:
        chosen.insert(0, ("algo.name", group["name"]))
    if not chosen:
        return Config().algo.name
    key, name = chosen[-1][0], str(chosen[-1][1])
    known = [member.name for member in AlgoName]
    if name not in known:
        remedy = did_you_mean(name, known) or "choose one of " + ", ".join(known)
        raise ConfigError(refusal(key, name, "there is no such algorithm", remedy))
    return AlgoName[name]


def _named(typed: list[Override], settings: dict[str, Any]) -> set[str]:
    """The settings with per-algorithm defaults that the user has set, even if to the default value.

    A comparison's own config.yaml has every setting, and a list of those that were named.
    """
    layers = [o.nested() for o in typed]
    if NAMED not in dict(leaves(settings)):
        layers.append(settings)
    return {key for layer in layers for key, _ in leaves(layer)} & VARIED


def algorithm_defaults(algorithm: AlgoName) -> DictConfig:
    """The settings in which an algorithm differs from the schema's defaults, nested."""
    return _nested(TABLE[algorithm].defaults)


def defaults_under(algorithm: AlgoName) -> Config:
    """The schema's defaults, overridden by those of an algorithm."""
    return _resolve([], algorithm, [])


def _for_kind(
    kind: AdapterKind, settings: dict[str, Any], former: AdapterKind
) -> tuple[DictConfig, dict[str, Any]]:
    """Two layers: the defaults of `kind`, and nested `settings`, which were written for the kind `former`.

    Size, scaling and `lora.settings` mean something else in another kind of PEFT, so they are left out for one.
    """
    own = settings.get("lora")
    if KINDS[kind].peft_type != KINDS[former].peft_type and isinstance(own, dict):
        kept = {key: value for key, value in own.items() if key not in ("rank", "alpha", "settings")}
        settings = {**settings, "lora": kept}
    return _nested(KINDS[kind].defaults), settings


def _kind(layers: Sequence[dict[str, Any]]) -> AdapterKind | None:
    """The kind that the last of `layers` names, if any. Raises ConfigError if a run cannot train it."""
    names = [value for layer in layers for key, value in leaves(layer) if key == "lora.kind"]
    return kind_named(str(getattr(names[-1], "name", names[-1]))) if names else None


def _nested(settings: Mapping[str, Any]) -> DictConfig:
    """Settings by dotted key, as nested groups."""
    node = OmegaConf.create()
    for key, value in settings.items():
        OmegaConf.update(node, key, value, force_add=True)
    return node


def _resolve(
    settings: Sequence[dict[str, Any] | DictConfig], algorithm: AlgoName, typed: list[Override]
) -> Config:
    layers = [algorithm_defaults(algorithm), *settings, *(o.nested() for o in typed)]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        merged.algo.name = algorithm
        for key in PATHS:
            if path := OmegaConf.select(merged, key):
                OmegaConf.update(merged, key, _from_home(path))
        return typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise _readable(error, typed) from None


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A copy of `config` with other values, by dotted key. Another kind of adapter brings its own defaults.

    Raises ConfigError for an unknown key or a wrong type.
    """
    refuse_unknown(settings.items(), NAMED_SETTINGS)
    former = config.lora.kind
    kind = kind_named(str(settings.get("lora.kind", former.name)))
    try:
        layers = _for_kind(kind, dataclasses.asdict(config), former)
        node = OmegaConf.merge(_defaults(), *layers, _nested(settings))
        return typing.cast(Config, OmegaConf.to_object(node))
    except OmegaConfBaseException as error:
        raise _readable(error, []) from None


@functools.cache
def _defaults() -> DictConfig:
    """All settings with their defaults, for `OmegaConf.merge`, which copies them. Making them is slow."""
    return OmegaConf.structured(Config)


def _from_home(path: str) -> str:
    return os.path.expanduser(path) if path.partition("/")[0] == "~" else path


def _readable(error: OmegaConfBaseException, typed: list[Override]) -> ConfigError:
    key, reason, known = str(error.full_key).partition("[")[0], str(error).splitlines()[0], schema()
    if key not in known:
        return ConfigError(f"reason: {reason}\n  remedy: rlpost settings: every setting and its type")
    words = [o.typed for o in typed if o.key == key]
    value = words[-1] if words else getattr(error, "value", "as in the experiment's file")
    sweep = (
        "; start once for each value to sweep"
        if words and "," in words[-1] and known[key] is not list
        else ""
    )
    return ConfigError(refusal(key, value, reason, f"give {describe(known[key])}{sweep}"))
