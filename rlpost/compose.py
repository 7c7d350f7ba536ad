"""From `experiment=NAME key=value ...` to a typed Config: the schema, an experiment's file, the command line.

    rlpost.config.Config  <-  the algorithm's defaults  <-  experiments/NAME.yaml  <-  key=value ...

An experiment is a flat YAML file that holds only what differs from the layers below it; its first line is a
comment of one sentence, which the listing shows. `defaults: [OTHER]` in it builds on another experiment's file.
`resume=DIR` without an experiment takes DIR/config.yaml instead; `experiment=FILE.yaml` takes a file of one's own.

`algo=NAME` (or `algo.name=NAME`, in a file: `algo: {name: NAME}`) chooses a row of rlpost.algorithms.table, whose
defaults are a layer of their own; `algo.KEY=VALUE` sets one of its settings. The last word has the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import sysconfig
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlpost.algorithms.table import TABLE
from rlpost.config import AlgoName, Config
from rlpost.errors import ConfigError

RESUMED = "resumed-run"
OWN_FILE = "own-file"
ALGORITHM_KEYS = ("algo", "algo.name")  # both choose an algorithm
SHORT = {"arms": "compare.arms", "seeds": "compare.seeds", "quick": "compare.quick"}
BASES = "defaults"  # key of an experiment's file


def refusal(key: str, value: object, reason: str, remedy: str) -> str:
    """The one form in which a setting is refused."""
    return f"{key}={value}\n  reason: {reason}\n  remedy: {remedy}"


@dataclass(frozen=True)
class Experiment:
    name: str
    path: Path
    summary: str  # first comment line of the file


def experiments_folder() -> Path:
    """The checkout's experiments/, or the installed copy of it.

    Raises ConfigError when neither is there.
    """
    checkout = Path(__file__).resolve().parents[1] / "experiments"
    installed = Path(sysconfig.get_path("data")) / "share" / "rlpost" / "experiments"
    for folder in (checkout, installed):
        if any(folder.glob("*.yaml")):
            return folder
    raise ConfigError(f"No experiments found: neither {checkout} nor {installed} holds a YAML file.")


def experiments() -> dict[str, Experiment]:
    """Every experiment that `experiment=` accepts, by name."""
    found = {}
    for path in sorted(experiments_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = Experiment(path.stem, path, first.removeprefix("#").strip())
    return found


def compose(overrides: Sequence[str]) -> Config:
    """Resolve `experiment=NAME key=value ...` to a Config; values are typed, ranges are validate's business.

    Raises ConfigError for a missing or unknown experiment, an unknown key, a wrong type or a malformed override.
    """
    parsed = _parse([_in_full(text) for text in overrides])
    name, path = _experiment_file(parsed)
    settings = _settings(path)
    _refuse_unknown(_leaves(settings), where=str(path))
    typed = [o for o in parsed if o.key_or_group != "experiment"]
    _refuse_unknown(((o.key_or_group, o.value()) for o in typed), "command line")
    algorithm = _algorithm(typed, settings)
    _register(name, settings, algorithm)
    rest = [_as_hydra_wants(o) for o in typed if o.key_or_group not in ALGORITHM_KEYS]
    return _resolve([f"experiment={name}", f"algo.name={algorithm.name}", *rest])


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
        remedy = _did_you_mean(name, list(known)) or "choose one of " + ", ".join(known)
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
        remedy = _did_you_mean(name, known) or "choose one of " + ", ".join(known)
        raise ConfigError(refusal(key, name, "there is no such algorithm", remedy))
    return AlgoName[name]


def _settings(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings over those of the experiments it builds on."""
    settings = _load(path)
    bases = settings.pop(BASES, [])
    known = experiments()
    layers: list[Any] = []
    for base in bases if isinstance(bases, list) else [bases]:
        if base not in known or known[base].path in (path, *above):
            reason = "it is no experiment that this one could build on"
            remedy = "choose one of " + ", ".join(known)
            raise ConfigError(f"{path}\n  {refusal(BASES, base, reason, remedy)}")
        layers.append(_settings(known[base].path, (path, *above)))
    merged = OmegaConf.to_container(OmegaConf.merge(*layers, settings))
    return typing.cast(dict[str, Any], merged)


def _load(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}\n  reason: cannot be read ({error.strerror})\n  remedy: check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}\n  reason: not YAML ({error})\n  remedy: mend the file") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path}\n  reason: it holds no key: value pairs\n  remedy: mend the file")
    return settings


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    free_form = {key for key, kind in schema().items() if kind is dict}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in free_form:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def schema() -> dict[str, type]:
    """Every setting by its dotted key, with the type to show: a group of settings maps to its dataclass."""
    return dict(_walk(Config, ""))


def _walk(node: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(node).items():
        key = f"{prefix}{name}"
        yield key, typing.get_origin(kind) or kind
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), f"{key}.")


def _refuse_unknown(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    known = schema()
    for key, value in settings:
        if key in known or key.startswith("env_args."):
            continue
        remedy = _did_you_mean(key, list(known)) or "see rlpost/config.py for every setting"
        raise ConfigError(refusal(key, value, f"there is no such setting ({where})", remedy))


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    tail = word.rpartition(".")[2]
    close += [key for key in known if key.rpartition(".")[2] == tail and key not in close]
    return f"did you mean {' or '.join(close)}?" if close else ""


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
        return ConfigError(f"reason: {reason}\n  remedy: see rlpost/config.py for every setting and its type")
    key = str(getattr(cause, "full_key", ""))
    typed = [text.partition("=")[2] for text in overrides if text.startswith(f"{key}=")]
    value = typed[-1] if typed else getattr(cause, "value", "as in the experiment's file")
    return ConfigError(refusal(key, value, str(cause).splitlines()[0], f"give {describe(known[key])}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def describe(kind: type) -> str:
    """What a value of a setting's type looks like, in words."""
    if dataclasses.is_dataclass(kind):
        return "its settings one by one: " + ", ".join(field.name for field in dataclasses.fields(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.name for member in kind)
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list: [a,b]",
        str: "a word",
    }
    return words.get(kind, "a value of the right type, or null")


logging.getLogger("hydra").setLevel(logging.ERROR)
