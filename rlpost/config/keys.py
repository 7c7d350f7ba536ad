"""The settings that there are, with their types, and the words in which a wrong one is refused."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from rlpost.config.schema import Config
from rlpost.errors import ConfigError


def refusal(key: str, value: object, reason: str, remedy: str) -> str:
    """The one form in which a setting is refused."""
    return f"{key}={value}\n  reason: {reason}\n  remedy: {remedy}"


def schema() -> dict[str, type]:
    """Every setting by its dotted key, with the type to show: a group of settings maps to its dataclass."""
    return dict(_walk(Config, ""))


def _walk(node: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(node).items():
        key = f"{prefix}{name}"
        yield key, typing.get_origin(kind) or kind
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), f"{key}.")


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


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a nested mapping, by dotted key; what is free-form stays whole."""
    free_form = {key for key, kind in schema().items() if kind is dict}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in free_form:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def refuse_unknown(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    """Raise ConfigError, naming `where`, for the first key that no setting has."""
    known = schema()
    for key, value in settings:
        if key in known or key.startswith("env_args."):
            continue
        remedy = did_you_mean(key, list(known)) or "see rlpost/config/schema.py for every setting"
        raise ConfigError(refusal(key, value, f"there is no such setting ({where})", remedy))


def refuse_marks(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    """Raise ConfigError, naming `where`, for the first setting with a text that OmegaConf takes for more than a text.

    An interpolation would be resolved at the start and written to config.yaml as what it stood for (a secret, from
    the environment), or written as it is and fail when a resumed run, or a cell, reads it.
    """
    for key, value in settings:
        if any(_is_mark(text) for text in _texts(value)):
            reason = f"'${{' and '???' stand for another setting's value, and for none ({where})"
            raise ConfigError(
                refusal(key, value, reason, "write the value itself, and rename what has such a name")
            )


def _is_mark(text: str) -> bool:
    return "${" in text or text == "???"


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def did_you_mean(word: str, known: list[str]) -> str:
    """A question that names what is spelt alike; empty where nothing is."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    tail = word.rpartition(".")[2]
    close += [key for key in known if key.rpartition(".")[2] == tail and key not in close]
    return f"did you mean {' or '.join(close)}?" if close else ""
