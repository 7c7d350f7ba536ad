"""From `experiment=NAME key=value ...` to a typed Config: the schema, an experiment's file, the command line.

    rlpost.config.schema.Config  <-  the algorithm's defaults  <-  experiments/NAME.yaml  <-  key=value ...

`resume=DIR` without an experiment takes DIR/config.yaml instead; `experiment=FILE.yaml` takes a file of one's own.

`algo=NAME` (or `algo.name=NAME`, in a file: `algo: {name: NAME}`) chooses a row of rlpost.config.presets, whose
defaults are a layer of their own; `algo.KEY=VALUE` sets one of its settings. The last word has the command line.
"""

from __future__ import annotations

import logging
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlpost.config.experiments import experiments, settings_in
from rlpost.config.keys import describe, did_you_mean, leaves, refusal, refuse_marks, refuse_unknown, schema
from rlpost.config.presets import TABLE, VARIED
from rlpost.config.schema import AlgoName, Config, Task
from rlpost.config.trust import refuse_unnamed_code
from rlpost.errors import ConfigError

RESUMED = "resumed-run"
OWN_FILE = "own-file"
ALGORITHM_KEYS = ("algo", "algo.name")  # both choose an algorithm
NAMED = "compare.named"
SHORT = {"arms": "compare.arms", "seeds": "compare.seeds", "quick": "compare.quick"}


def compose(overrides: Sequence[str]) -> Config:
    """Resolve `experiment=NAME key=value ...` to a Config; values are typed, ranges are validate's business.

    Raises ConfigError for a missing or unknown experiment, an unknown key, a wrong type or a malformed override, and
    for a resumed record that names code outside of rlpost, which the command line does not (rlpost/config/trust.py).
    """
    parsed = _parse([_in_full(text) for text in overrides])
    name, path = _experiment_file(parsed)
    settings = settings_in(path)
    refuse_unknown(leaves(settings), where=str(path))
    typed = [o for o in parsed if o.key_or_group != "experiment"]
    refuse_unknown(((o.key_or_group, o.value()) for o in typed), "command line")
    refuse_marks(((o.key_or_group, o.value()) for o in typed), "command line")
    algorithm = _algorithm(typed, settings)
    _register(name, settings, algorithm)
    rest = [_as_hydra_wants(o) for o in typed if o.key_or_group not in ALGORITHM_KEYS]
    config = _resolve([f"experiment={name}", f"algo.name={algorithm.name}", *rest])
    if name == RESUMED:
        refuse_unnamed_code(config, {o.key_or_group for o in typed}, path)
    if config.task is Task.compare:
        config.compare.named = sorted({*config.compare.named, *_named(typed, settings)})
    return config


def named_by(overrides: Sequence[str]) -> set[str]:
    """The settings that a command line names, by dotted key. Raises ConfigError for a malformed override."""
    parsed = _parse([_in_full(text) for text in overrides])
    return {key for o in parsed for key, _ in leaves({o.key_or_group: o.value()})}


def to_yaml(config: Config) -> str:
    """Every setting, resolved, as YAML that `resume=` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def override(key: str, value: object) -> str:
    """key=value for the command line, quoted so that any text comes through as it is."""
    # Hydra reads a backslash as one unless it stands before a quote.
    text = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(value))
    return f"{key}='{text}'"


def _in_full(text: str) -> str:
    key, equals, value = text.partition("=")
    return f"{SHORT[key]}={value}" if equals and key in SHORT else text


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{text}\n  reason: not of the form key=value ({reason})\n"
                "  remedy: quote values that hold spaces, commas, brackets or '=': 'key=\"a, b\"'"
            ) from None
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            raise ConfigError(
                f"{text}\n  reason: adding, deleting and sweeping settings is not supported\n"
                "  remedy: write key=value; every setting already exists (start once for each value to sweep)"
            )
        parsed.append(override)
    return parsed


def _as_hydra_wants(override: Override) -> str:
    """The override's own text; Hydra takes new keys of the free-form env_args only with `++`."""
    free_form = override.key_or_group.partition(".")[0] == "env_args"
    return f"{'++' if free_form else ''}{override.input_line}"


def _experiment_file(parsed: list[Override]) -> tuple[str, Path]:
    chosen = {o.key_or_group: o.value() for o in parsed}
    known = experiments()
    if "experiment" in chosen:
        name = str(chosen["experiment"])
        if name in known:
            return name, known[name].path
        if name.endswith(".yaml"):
            return OWN_FILE, Path(name)
        remedy = did_you_mean(name, list(known)) or "choose one of " + ", ".join(known)
        raise ConfigError(refusal("experiment", name, "there is no such experiment", remedy))
    if chosen.get("resume"):
        return RESUMED, Path(str(chosen["resume"])) / "config.yaml"
    raise ConfigError(
        refusal("experiment", "", "no experiment was chosen", "choose one of " + ", ".join(known))
    )


def _algorithm(typed: list[Override], settings: dict[str, Any]) -> AlgoName:
    """The one that the command line names, else the experiment's file, else the schema."""
    chosen = [(o.key_or_group, o.value()) for o in typed if o.key_or_group in ALGORITHM_KEYS]
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
    """The settings with defaults by algorithm that somebody has set, be it to the value that they had.

    A comparison's own config.yaml has every setting, and its list of those that were named.
    """
    layers = [{o.key_or_group: o.value()} for o in typed]
    if NAMED not in dict(leaves(settings)):
        layers.append(settings)
    return {key for layer in layers for key, _ in leaves(layer)} & VARIED


def _register(name: str, settings: dict[str, Any], algorithm: AlgoName) -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="algorithm", node=algorithm_defaults(algorithm))
    store.store(name="run", node={"defaults": ["schema", "algorithm", "_self_", {"experiment": None}]})
    store.store(group="experiment", name=name, node=OmegaConf.create(settings), package="_global_")


def algorithm_defaults(algorithm: AlgoName) -> DictConfig:
    """The settings in which an algorithm differs from the schema's defaults, nested."""
    node = OmegaConf.create()
    for key, value in TABLE[algorithm].defaults.items():
        OmegaConf.update(node, key, value, force_add=True)
    return node


def defaults_under(algorithm: AlgoName) -> Config:
    """The schema's defaults with an algorithm's own laid over them."""
    merged = OmegaConf.merge(OmegaConf.structured(Config), algorithm_defaults(algorithm))
    merged.algo.name = algorithm
    return typing.cast(Config, OmegaConf.to_object(merged))


def _resolve(overrides: list[str]) -> Config:
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            resolved = hydra_compose("run", overrides=overrides)
        return typing.cast(Config, OmegaConf.to_object(resolved))
    except (HydraException, OmegaConfBaseException) as error:
        raise _readable(error, overrides) from None


def _readable(error: BaseException, overrides: list[str]) -> ConfigError:
    """Hydra wraps OmegaConf's error, which knows the key that did not fit."""
    known = schema()
    chain = list(_causes(error))
    cause = next((inner for inner in chain if getattr(inner, "full_key", None) in known), None)
    if cause is None:
        reason = str(chain[-1]).splitlines()[0]
        return ConfigError(
            f"reason: {reason}\n  remedy: see rlpost/config/schema.py for every setting and its type"
        )
    key = str(getattr(cause, "full_key", ""))
    typed = [text.partition("=")[2] for text in overrides if text.startswith(f"{key}=")]
    value = typed[-1] if typed else getattr(cause, "value", "as in the experiment's file")
    return ConfigError(refusal(key, value, str(cause).splitlines()[0], f"give {describe(known[key])}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


logging.getLogger("hydra").setLevel(logging.ERROR)
