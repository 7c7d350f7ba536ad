"""All settings with their types, and the wording of refusals."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from rlpost.config.schema import Config
from rlpost.errors import ConfigError

SEPARATORS = frozenset("\x85\u2028\u2029")


def refusal(key: str, value: object, reason: str, remedy: str) -> str:
    """A refusal of a setting, in the form that all of them have."""
    return f"{key}={'null' if value is None else value}\n  reason: {reason}\n  remedy: {remedy}"


def refusal_of_all(key: str, value: object, faults: Iterable[tuple[str, str]], way_out: str) -> Iterator[str]:
    """One refusal of a setting for every fault (reason, remedy), of which there may be none.

    All remedies together make the setting possible; `way_out` does without it.
    """
    found = list(faults)
    if found:
        remedies = dict.fromkeys(remedy for _, remedy in found if remedy)
        remedy = "; or ".join(filter(None, ("; and ".join(remedies), way_out)))
        yield refusal(key, value, "\n  reason: ".join(reason for reason, _ in found), remedy)


@functools.cache
def schema() -> Mapping[str, type]:
    """Every setting by its dotted key, with the type to show. A group of settings maps to its dataclass."""
    return {key: typing.get_origin(kind) or kind for key, kind in _walk(Config, "")}


@functools.cache
def text_settings() -> frozenset[str]:
    """The settings whose type is a text or a list of texts."""
    return frozenset(key for key, kind in _walk(Config, "") if kind in (str, str | None, list[str]))


def _walk(node: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(node).items():
        key = f"{prefix}{name}"
        yield key, kind
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), f"{key}.")


def describe(kind: type) -> str:
    """The values that a setting's type allows, in words."""
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
    """The settings of a nested mapping, by dotted key. Free-form mappings stay whole."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and not free_form(path):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def free_form(key: str) -> bool:
    """Whether a dotted key is a mapping whose names the user chooses, such as env_args, or is within one."""
    parts = key.split(".")
    return any(schema().get(".".join(parts[: n + 1])) is dict for n in range(len(parts)))


def refuse_unknown(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    """Raise ConfigError, naming `where`, for the first key that is not a setting, or not one of its group."""
    known = schema()
    for key, value in settings:
        kind = known.get(key)
        if kind is None:
            remedy = did_you_mean(key, list(known)) or "rlpost settings: every setting"
            raise ConfigError(refusal(key, value, f"there is no such setting ({where})", remedy))
        if dataclasses.is_dataclass(kind):
            raise ConfigError(
                refusal(key, value, f"it is a group of settings ({where})", f"give {describe(kind)}")
            )


def refuse_unquoted(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    """Raise ConfigError, naming `where`, for the first text that YAML has read as another type.

    The text as written is lost by then: 1.10 has become 1.1.
    """
    texts = text_settings()
    for key, value in settings:
        for each in value if isinstance(value, list) else [value]:
            if key in texts and not isinstance(each, str | None):
                reason = f"{each} is read as a {type(each).__name__}, not as a text ({where})"
                raise ConfigError(refusal(key, value, reason, "write each text in quotes, as in '1.10'"))


def refuse_marks(settings: typing.Iterable[tuple[str, Any]], where: str) -> None:
    """Raise ConfigError, naming `where`, for the first setting with a text that would not be stored unchanged.

    OmegaConf would resolve an interpolation at the start and write its value to config.yaml (possibly a secret from the
    environment), or write it unresolved and fail when a resumed run, or a cell, reads it. YAML's writer confuses line
    separators other than a newline.
    """
    for key, value in settings:
        for text in (key, *_texts(value)):
            if "${" in text or text == "???":
                reason = f"'${{' and '???' stand for another setting's value, and for none ({where})"
                remedy = "write the value itself, and rename what has such a name"
                raise ConfigError(refusal(key, value, reason, remedy))
            if not SEPARATORS.isdisjoint(text):
                reason = f"{text!a} holds a separator of lines that config.yaml would not keep ({where})"
                raise ConfigError(refusal(key, value, reason, "leave it out, or write a newline"))


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
    """A question that suggests words with a similar spelling; empty if there are none."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    tail = word.rpartition(".")[2]
    close += [key for key in known if key.rpartition(".")[2] == tail and key not in close]
    return f"did you mean {' or '.join(close)}?" if close else ""
