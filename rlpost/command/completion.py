"""`rlpost completion bash|zsh|fish`: the script that completes verbs, experiments, settings and their values.

At every key press for completion, the script calls `rlpost completion words WORD ...` with the words typed so far after
`rlpost`. The last one is to be completed and may be empty. The answer has one full word per line.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from enum import Enum
from importlib import resources

from rlpost.command.verbs import VERBS
from rlpost.config.experiments import experiments
from rlpost.config.keys import schema
from rlpost.config.overrides import SHORT
from rlpost.config.schema import AlgoName
from rlpost.envs import registry

SHELLS = ("bash", "zsh", "fish")
_ENVIRONMENT_VERBS = ("play", "check", "list")


def main(words: Sequence[str]) -> int:
    """Print a shell's script, or the words that complete what is typed."""
    if words and words[0] == "words":
        typed = list(words[1:]) or [""]
        for candidate in candidates(typed[:-1], typed[-1]):
            print(candidate)
        return 0
    parser = argparse.ArgumentParser(prog="rlpost completion", description=main.__doc__, epilog=_HOW)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(words).shell
    print(
        (resources.files("rlpost.command") / "completion_scripts" / f"rlpost.{shell}").read_text("utf-8"),
        end="",
    )
    return 0


_HOW = """bash, in ~/.bashrc:                 eval "$(rlpost completion bash)"
zsh, in ~/.zshrc after compinit:    eval "$(rlpost completion zsh)"
fish, in config.fish:               rlpost completion fish | source"""


def candidates(before: Sequence[str], current: str) -> list[str]:
    """The full words that begin with `current`, after the words `before` it; empty if a path is expected."""
    known = _expected(before, current)
    return sorted({word for word in known if word.startswith(current)})


def _expected(before: Sequence[str], current: str) -> Iterable[str]:
    if before and before[0] in VERBS:
        return _after_verb(before[0], len(before))
    key, equals, _ = current.partition("=")
    if equals:
        return (f"{key}={value}" for value in _values(key))
    given = {word.partition("=")[0] for word in before}
    keys = [f"{each}=" for each in ("experiment", *_settings(), *SHORT) if each not in given]
    return keys if before else [*VERBS, *experiments(), *keys]


def _after_verb(verb: str, position: int) -> Iterable[str]:
    if position > 1:
        return ()
    if verb == "settings":
        return schema()
    if verb == "completion":
        return SHELLS
    return _environments() if verb in _ENVIRONMENT_VERBS else ()


def _settings() -> list[str]:
    """Every key that takes a value. Of the groups only `algo` is included, since it chooses the algorithm."""
    return ["algo", *(key for key, kind in schema().items() if not dataclasses.is_dataclass(kind))]


def _values(key: str) -> Iterable[str]:
    kind = schema().get(SHORT.get(key, key))
    if key == "experiment":
        return experiments()
    if key == "algo":
        return AlgoName.__members__
    if key == "env":
        return _environments()
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind.__members__
    return ("true", "false") if kind is bool else ()


def _environments() -> list[str]:
    """The names of bundled environments, and the prefixes of families of environments."""
    return [*registry.names(), *registry.FAMILIES]
