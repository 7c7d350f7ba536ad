"""The environments there are, by name. Nothing of an environment is imported until it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gymnasium

from envs.adapter import ONLY_VARIANT, Adapted, check_spaces
from envs.base import VariantInfo


@dataclass(frozen=True)
class Entry:
    env: str  # module:class
    variants: str  # module:mapping from a variant's name to its data
    summary: str


_MOST_NAMED = 3

ENTRIES: dict[str, Entry] = {
    "generalpoints": Entry(
        "envs.generalpoints.env:GeneralPoints",
        "envs.generalpoints.variants:VARIANTS",
        "combine playing cards with + - * / to reach 24",
    ),
    "navigation": Entry(
        "envs.navigation.env:Navigation",
        "envs.navigation.variants:VARIANTS",
        "follow instructions through the streets of a city",
    ),
}


def names() -> list[str]:
    return sorted(ENTRIES)


def _entry(name: str) -> Entry:
    if name in ENTRIES:
        return ENTRIES[name]
    close = difflib.get_close_matches(name, ENTRIES)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"unknown environment {name!r}; there are: {', '.join(names())}.{meant}")


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _is_reference(name: str) -> bool:
    return ":" in name


def _own_class(reference: str) -> type[gymnasium.Env[str, str]]:
    """The class of `my_package.my_module:MyEnv`. ValueError where it cannot be had or is no environment."""
    try:
        found = _load(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{reference}: cannot be imported ({error}); it must be module:class, importable from here"
        ) from error
    if not (isinstance(found, type) and issubclass(found, gymnasium.Env)):
        raise ValueError(f"{reference}: is no subclass of gymnasium.Env")
    return found


def _declared(env_class: type[gymnasium.Env[str, str]]) -> list[VariantInfo]:
    """What a class of one's own lists as `variants`; empty where it has none."""
    return list(getattr(env_class, "variants", ()))


def _known_arguments(name: str, env_class: Any, args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(env_class).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    unknown = sorted(args.keys() - parameters.keys())
    if unknown:
        raise ValueError(f"{name}: unknown argument {', '.join(unknown)}; there are: {', '.join(parameters)}")


def make(name: str, **args: Any) -> gymnasium.Env[str, str]:
    """A new environment: a registered one, or one's own as `my_package.my_module:MyEnv`.

    One's own may be any Gymnasium environment with text spaces; one that declares no `variants` is adapted
    (envs/adapter.py). ValueError for an unknown name or argument or a bad value, naming what there is.
    """
    env_class = _own_class(name) if _is_reference(name) else _load(_entry(name).env)
    _known_arguments(name, env_class, args)
    env = cast("gymnasium.Env[str, str]", env_class(**args))
    if not _is_reference(name):
        return env
    check_spaces(env, name)
    return env if _declared(env_class) else Adapted(env)


def variants(name: str) -> list[VariantInfo]:
    """The rule variants of an environment, in the order they are declared."""
    if _is_reference(name):
        return _declared(_own_class(name)) or [ONLY_VARIANT]
    return list(cast("Mapping[str, VariantInfo]", _load(_entry(name).variants)).values())


def refuse_overlap(trained: Iterable[str], held_out: Iterable[str]) -> None:
    """ValueError where an instance (`info["instance"]`) is both trained on and held out, naming some."""
    both = sorted(set(trained) & set(held_out))
    if both:
        raise ValueError(
            f"{len(both)} instances are both trained on and held out, such as {', '.join(both[:_MOST_NAMED])};"
            " draw the two from the splits train and eval"
        )
