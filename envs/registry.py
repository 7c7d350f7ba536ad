"""The environments there are, by name. Nothing of an environment is imported until it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gymnasium

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


def make(name: str, **args: Any) -> gymnasium.Env[str, str]:
    """A new environment. ValueError for an unknown name or argument or a bad value, naming what there is."""
    env_class = _load(_entry(name).env)
    known = list(inspect.signature(env_class).parameters)
    unknown = sorted(args.keys() - set(known))
    if unknown:
        raise ValueError(f"{name}: unknown argument {', '.join(unknown)}; there are: {', '.join(known)}")
    return cast("gymnasium.Env[str, str]", env_class(**args))


def variants(name: str) -> list[VariantInfo]:
    """The rule variants of an environment, in the order they are declared."""
    return list(cast("Mapping[str, VariantInfo]", _load(_entry(name).variants)).values())


def refuse_overlap(trained: Iterable[str], held_out: Iterable[str]) -> None:
    """ValueError where an instance (`info["instance"]`) is both trained on and held out, naming some."""
    both = sorted(set(trained) & set(held_out))
    if both:
        raise ValueError(
            f"{len(both)} instances are both trained on and held out, such as {', '.join(both[:_MOST_NAMED])};"
            " draw the two from the splits train and eval"
        )
