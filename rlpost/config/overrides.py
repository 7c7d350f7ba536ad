"""Parses the `key=value` words of the command line.

Everything after the first `=` is the value. A text setting keeps it as typed: 1.10 stays 1.10. OmegaConf converts it
for numbers, switches and choices. `[a,b]` and `{a: 1}` are read as YAML if the setting is a list, a group or free-form
(env_args, rollout.template_args); a free-form word that spells a number, true or false becomes that value. `null` means
no value for every setting. A quoted value is always the text between the quotes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlpost.config.experiments import experiments
from rlpost.config.keys import free_form, refusal, schema
from rlpost.config.yaml_files import parse_flow, parse_scalar, parse_texts
from rlpost.errors import ConfigError

SHORT = {"arms": "compare.arms", "seeds": "compare.seeds", "quick": "compare.quick"}


class Override(NamedTuple):
    key: str  # the full key, dotted
    typed: str  # the text after the first `=`
    value: Any

    def nested(self) -> dict[str, Any]:
        """The value, nested under the groups of its key."""
        first, *rest = self.key.split(".")
        value = self.value
        for name in reversed(rest):
            value = {name: value}
        return {first: value}


Word = str | Override  # typed on the command line, or with a value that Python code gives


def parse(words: Sequence[Word]) -> list[Override]:
    """Raises ConfigError for the first word that is not key=value, or whose `[` or `{` does not start valid YAML."""
    return [word if isinstance(word, Override) else _parse(word) for word in words]


def override(key: str, value: object) -> str:
    """key=value for the command line, quoted so that every text is read back unchanged."""
    return f"{key}='{value}'"


def _parse(word: str) -> Override:
    key, equals, typed = word.partition("=")
    if not equals or key[:1] in ("+", "~") or not all(key.split(".")):
        remedy = (
            f"write experiment={word}, or: rlpost {word}"
            if word in experiments()
            else "write key=value; every setting already exists (start once for each value to sweep)"
        )
        raise ConfigError(f"{word}\n  reason: not of the form key=value\n  remedy: {remedy}")
    key = SHORT.get(key, key)
    return Override(key, typed, _value(key, typed))


def _value(key: str, typed: str) -> Any:
    if len(typed) > 1 and typed[0] in "'\"" and typed[-1] == typed[0]:
        return typed[1:-1]
    if typed.lower() == "null":
        return None
    kind = dict if free_form(key) else schema().get(key)
    if typed[:1] in ("[", "{") and (kind in (dict, list) or dataclasses.is_dataclass(kind)):
        try:
            return parse_texts(typed) if kind is list else parse_flow(typed)
        except ConfigError as error:
            remedy = (
                f'write [a,b] or {{a: 1}}; a text that begins so stands in quotes: "{override(key, "...")}"'
            )
            raise ConfigError(refusal(key, typed, str(error), remedy)) from None
    return parse_scalar(typed) if kind is dict else typed
