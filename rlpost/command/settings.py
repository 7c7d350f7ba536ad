"""`rlpost settings [PREFIX]`: every setting with its default, its range and its meaning."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from rich.console import Console
from rich.text import Text

from rlpost.config.keys import describe, did_you_mean, schema
from rlpost.config.meanings import choice_meanings, meanings
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config
from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError
from rlpost.validate.checks import OPTIONAL_RANGES, RANGES

_INDENT = "    "


@dataclasses.dataclass(frozen=True)
class Setting:
    key: str  # the full dotted key
    default: Any  # as in YAML: a choice is its name
    allowed: str  # the allowed values, in words
    meaning: str
    choices: dict[str, str]  # of a choice: every word, with its meaning if it has one
    defaults_by_algorithm: dict[str, Any]  # by algorithm, for algorithms with their own default


def main(words: Sequence[str]) -> int:
    """Print settings with their default, range and meaning. Raises ConfigError if none begins with PREFIX."""
    parser = argparse.ArgumentParser(prog="rlpost settings", description=__doc__)
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="such as algo, or algo.kl")
    parser.add_argument("--json", action="store_true", help="as a JSON list, for programs")
    asked = parser.parse_args(words)
    chosen = [setting for setting in settings() if setting.key.startswith(asked.prefix)]
    if not chosen:
        remedy = did_you_mean(asked.prefix, list(schema())) or "rlpost settings: all of them"
        raise ConfigError(f"{asked.prefix}\n  reason: no setting begins so\n  remedy: {remedy}")
    if asked.json:
        plain_console().out(json.dumps([dataclasses.asdict(setting) for setting in chosen], indent=1))
    else:
        _print(chosen, plain_console())
    return 0


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the schema."""
    meant, defaults = meanings(), Config()
    for key, kind in _kinds(Config, ""):
        ranges = {**RANGES, **OPTIONAL_RANGES}
        choices = choice_meanings(kind) if isinstance(kind, type) and issubclass(kind, Enum) else {}
        yield Setting(
            key,
            _plain(functools.reduce(getattr, key.split("."), defaults)),
            _allowed(kind, str(ranges[key]) if key in ranges else ""),
            meant[key],
            choices,
            {name.name: row.defaults[key] for name, row in TABLE.items() if key in row.defaults},
        )


def _kinds(group: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            yield from _kinds(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def _allowed(kind: Any, bounds: str) -> str:
    """The allowed values in words: type, bounds, and whether the value may be null."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    type_words = [describe(typing.get_origin(part) or part) for part in parts if part is not types.NoneType]
    words = " or ".join(type_words)
    if kind == dict[str, Any]:
        words = "a mapping: {a: 1}"
    words += f" {bounds}" if bounds else ""
    return f"{words}, or null" if len(parts) > len(type_words) else words


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def _print(chosen: Sequence[Setting], console: Console) -> None:
    for setting in chosen:
        console.print(
            Text.assemble((f"{setting.key}={typed(setting.default)}", "bold"), f"  {setting.allowed}")
        )
        lines = [setting.meaning]
        lines += [f"{name}: {meaning}" for name, meaning in setting.choices.items() if meaning]
        if setting.defaults_by_algorithm:
            rows = (f"algo={name} {typed(value)}" for name, value in setting.defaults_by_algorithm.items())
            lines.append(f"default under {', '.join(rows)}")
        for line in lines:
            console.print(
                textwrap.fill(line, console.width, initial_indent=_INDENT, subsequent_indent=_INDENT)
            )


def typed(value: Any) -> str:
    """A default as a user types it after `key=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
