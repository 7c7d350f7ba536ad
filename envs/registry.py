"""All environments, by name. A module of an environment is imported only when it is requested.

generalpoints              bundled: an entry of ENTRIES
reasoning_gym:countdown    a member of a family: FAMILIES names the module that makes it
my_package.my_module:MyEnv a user's class, importable from here (envs/own.py)
"""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium

from rlpost.envs import own
from rlpost.envs.base import VariantInfo
from rlpost.envs.errors import UnknownEnvironment

Env = gymnasium.Env[Any, str]


@dataclass(frozen=True)
class Entry:
    env: str  # module:class
    variants: str  # module:mapping from a variant's name to its data
    summary: str
    paths: tuple[str, ...] = ()  # arguments that name a file or a folder


@dataclass(frozen=True)
class Family:
    """Environments made from the contents of another package or a file."""

    module: str  # the name of a Source
    form: str  # the form of a member's name
    summary: str
    # Arguments that may name functions, as module:name, or contain the words of a command.
    code: tuple[str, ...] = ()
    imports: Callable[[str], str] | None = None  # the module that an environment's name makes it import
    contacts: bool = False  # whether its name is a server's address
    paths: tuple[str, ...] = ()  # arguments that may name a file or a folder


class Source(Protocol):
    """A module that makes environments; `name` is the whole name. Raises ValueError for what it cannot make."""

    def make(self, name: str, args: Mapping[str, Any]) -> Env: ...

    def variants(self, name: str, args: Mapping[str, Any]) -> list[VariantInfo]: ...

    def causes(self, name: str) -> Mapping[str, str]: ...


_MOST_NAMED = 3

ENTRIES: dict[str, Entry] = {
    "generalpoints": Entry(
        "rlpost.envs.generalpoints.env:GeneralPoints",
        "rlpost.envs.generalpoints.variants:VARIANTS",
        "combine playing cards with + - * / to reach 24",
    ),
    "navigation": Entry(
        "rlpost.envs.navigation.env:Navigation",
        "rlpost.envs.navigation.variants:VARIANTS",
        "follow instructions through the streets of a city",
        ("data",),
    ),
}

# By whole name, or by the prefix of a member's name.
FAMILIES: dict[str, Family] = {
    "dataset": Family(
        "rlpost.envs.dataset",
        "dataset",
        "prompts of a file or the hub, scored by functions: path=, score=",
        ("score",),
        paths=("path", "held_out_path"),
    ),
    "agent": Family(
        "rlpost.envs.agent",
        "agent",
        "a program of your own that asks over HTTP: path=, and agent= or command=",
        ("agent", "score", "command"),
        paths=("path", "held_out_path"),
    ),
    "reasoning_gym:": Family(
        "rlpost.envs.reasoning_gym",
        "reasoning_gym:TASK",
        "a task of the package reasoning-gym, an optional extra",
    ),
    "verifiers:": Family(
        "rlpost.envs.verifiers",
        "verifiers:ENV_ID",
        "an installed environment of the package verifiers, with the arguments of its load_environment",
        imports=lambda name: name.partition(":")[2].rpartition("/")[2].replace("-", "_"),
    ),
    "openenv:": Family(
        "rlpost.envs.openenv",
        "openenv:http://HOST:PORT",
        "the environment that a server of OpenEnv offers: action_field=, observation_field=, reset=",
        contacts=True,
    ),
}


def names() -> list[str]:
    """The names of the bundled environments: those that need no argument."""
    return sorted(ENTRIES)


def forms() -> str:
    """The forms that names of environments have, in one line."""
    return ", ".join([*names(), *(family.form for family in FAMILIES.values()), "my_module:MyEnv"])


class _Bundled:
    def make(self, name: str, args: Mapping[str, Any]) -> Env:
        env_class = _load(ENTRIES[name].env)
        own.known_arguments(name, env_class, args)
        return cast(Env, env_class(**args))

    def variants(self, name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
        return list(cast("Mapping[str, VariantInfo]", _load(ENTRIES[name].variants)).values())

    def causes(self, name: str) -> Mapping[str, str]:
        return cast("Mapping[str, str]", _load(ENTRIES[name].env).causes)


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _source(name: str) -> Source:
    """The source that makes the environment of this name."""
    before, colon, _ = name.partition(":")
    if (family := FAMILIES.get(before + colon)) is not None:
        return cast(Source, importlib.import_module(family.module))
    if colon:
        return cast(Source, own)
    if name in ENTRIES:
        return _Bundled()
    close = difflib.get_close_matches(name, [*ENTRIES, *(each.form for each in FAMILIES.values())])
    remedy = f"did you mean {' or '.join(close)}?" if close else "python -m rlpost.envs.list: what they are"
    raise UnknownEnvironment(f"unknown environment {name!r}: there are {forms()}", remedy)


def make(name: str, **args: Any) -> Env:
    """Make a new environment.

    A user's own may be any Gymnasium environment with text spaces; if it declares no `variants`, it is adapted
    (envs/adapter.py). Raises ValueError for an unknown name or argument or a bad value, with the possible ones.
    """
    return _source(name).make(name, args)


def own_code(name: str, args: Mapping[str, Any]) -> dict[str, str]:
    """The code outside of the bundle that this environment would import, by what names it: `env`, or an argument.

    The name of an environment on a server counts as well.

    Several names in one argument have the form of the command line: [rewards:right,rewards:short].
    """
    before, colon, _ = name.partition(":")
    family = FAMILIES.get(before + colon)
    if family is None:
        return {"env": name} if colon else {}
    if family.imports is not None or family.contacts:
        return {"env": name}
    named = {key: args[key] for key in family.code if key in args}
    told = {key: _told_code(key, value) for key, value in named.items()}
    return {key: text for key, text in told.items() if text}


def data_paths(name: str, args: Mapping[str, Any]) -> dict[str, str]:
    """The values, by argument, that may name a file or a folder which a bundled environment reads.

    What the arguments of a user's own environment mean is unknown, so none of them is among these.
    """
    before, colon, _ = name.partition(":")
    known = FAMILIES.get(before + colon) or ENTRIES.get(name)
    named = {key: args[key] for key in (known.paths if known is not None else ()) if key in args}
    return {key: value for key, value in named.items() if isinstance(value, str) and value}


def _told_code(key: str, value: Any) -> str:
    """The code in an argument as a user would type it; empty if it names none."""
    if key == "command":
        return shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]" if any(":" in str(each) for each in value) else ""
    return str(value) if ":" in str(value) else ""


def module_named(reference: str) -> str:
    """The module that an environment's name, or an argument that is code, makes it import."""
    before, colon, _ = reference.partition(":")
    family = FAMILIES.get(before + colon)
    return before if family is None or family.imports is None else family.imports(reference)


def is_server(reference: str) -> bool:
    """Whether an environment's name is the address of a server."""
    before, colon, _ = reference.partition(":")
    return (family := FAMILIES.get(before + colon)) is not None and family.contacts


def variants(name: str, **args: Any) -> list[VariantInfo]:
    """The rule variants of an environment made with these arguments, in the order of their declaration."""
    return _source(name).variants(name, args)


def causes(name: str) -> Mapping[str, str]:
    """The meanings of an environment's outcomes (envs/causes.py); empty if it does not declare them.

    Raises ValueError for an unknown name, and for a malformed declaration.
    """
    return _source(name).causes(name)


def refuse_overlap(trained: Iterable[str], held_out: Iterable[str]) -> None:
    """Raise ValueError if an instance (`info["instance"]`) is both trained on and held out; it names some."""
    both = sorted(set(trained) & set(held_out))
    if both:
        raise ValueError(
            f"{len(both)} instances are both trained on and held out, such as {', '.join(both[:_MOST_NAMED])};"
            " draw the two from the splits train and eval"
        )
