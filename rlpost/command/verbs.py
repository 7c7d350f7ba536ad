"""The verbs of the command `rlpost`. A verb's module is imported only when the verb is typed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Verb:
    """`function` is "module:name" of a function that takes the words after the verb and returns the exit code.

    It prints its own help for `--help`. An RlpostError that it raises is shown without a traceback.
    """

    function: str
    does: str  # one sentence, for the help

    def load(self) -> Main:
        module, _, name = self.function.partition(":")
        return cast(Main, getattr(importlib.import_module(module), name))


VERBS: dict[str, Verb] = {
    "report": Verb("rlpost.report:main", "write the page of a run or of a comparison"),
    "list": Verb("rlpost.envs.list:main", "list the environments and their variants"),
    "play": Verb("rlpost.envs.play:main", "play an environment at the terminal: rlpost play generalpoints"),
    "check": Verb("rlpost.envs.check:main", "check an environment as its author"),
    "chat": Verb("rlpost.verbs.chat:main", "talk with a trained policy, or watch it play"),
    "merge": Verb("rlpost.verbs.merge:main", "write a trained policy as a whole model"),
    "serve": Verb("rlpost.verbs.serve:main", "serve a trained policy by vLLM's OpenAI-compatible server"),
    "push": Verb("rlpost.verbs.push:main", "send an adapter with a model card to the Hugging Face hub"),
    "compare-runs": Verb("rlpost.verbs.compare_runs:main", "put several runs on one page"),
    "spectrum": Verb("rlpost.verbs.spectrum:main", "show what an update did to the spectrum of the weights"),
    "replay": Verb(
        "rlpost.verbs.replay:main", "do an iteration of a run again, and compare it with the record"
    ),
    "watch": Verb(
        "rlpost.verbs.watch:main", "serve a live page of a run, or of a comparison, on this machine"
    ),
    "doctor": Verb("rlpost.verbs.doctor:main", "look at this machine, or a cluster, before a run"),
    "settings": Verb("rlpost.command.settings:main", "print settings with default, range and meaning"),
    "completion": Verb(
        "rlpost.command.completion:main", "print the script that completes words in bash, zsh or fish"
    ),
}
