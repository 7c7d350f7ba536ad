"""The arguments of `env=agent`, checked once."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.envs import own
from rlpost.envs.dataset.settings import Settings as Tasks
from rlpost.envs.errors import Refused

_OWN = ("agent", "command", "max_calls", "network")
_DEFINE = "define it as: def agent(base_url, api_key, model, task), or with async"


@dataclass(frozen=True)
class Settings:
    """The arguments of `env=agent`. Those not listed here belong to the tasks, as for env=dataset.

    Args:
        agent: `my_module:agent`, called as agent(base_url=, api_key=, model=, task=) with a row of the tasks.
        command: a program and its arguments, started for each episode; an alternative to `agent`.
        tasks: `path`, `prompt` and the other arguments of env=dataset. `score`, which is optional, is called with the
            text that the agent returned, else with the model's last answer.
        max_calls: most calls of the model per episode.
        network: listen on this machine's network address instead of the loopback.
    """

    tasks: Tasks
    agent: str | None = None
    command: tuple[str, ...] = ()
    max_calls: int = 64
    network: bool = False

    @classmethod
    def checked(cls, args: Mapping[str, Any]) -> Settings:
        """Raises Refused for unknown, missing or ill-typed arguments."""
        mine = {key: args[key] for key in _OWN if key in args}
        if ("agent" in mine) == ("command" in mine):
            raise Refused(
                "agent: give one of agent= and command=",
                "env_args.agent=my_module:agent, or env_args.command=[python,my_agent.py]",
            )
        if "path" not in args:
            raise Refused("agent: path= is missing", "give env_args.path=FILE, a task a row")
        others = {key: value for key, value in args.items() if key not in _OWN}
        if "expert" in others:
            raise Refused("expert: an agent's answers cannot be shown beforehand", "leave it out")
        settings = cls(
            Tasks.checked(others), **{key: _CHECKS[key](key, value) for key, value in mine.items()}
        )
        if settings.command and shutil.which(settings.command[0]) is None:
            raise Refused(
                f"command={list(settings.command)}: there is no program {settings.command[0]!r} to run, seen from"
                f" {Path.cwd()}",
                "write its path, or begin with the program that runs it: [python,my_agent.py]",
            )
        return settings

    @property
    def scored(self) -> bool:
        """Whether a scoring function, and not the program, determines an episode's reward."""
        return bool(self.tasks.score)

    def function(self) -> Callable[..., Any]:
        """The function that `agent` names. Raises Refused if it cannot be imported, or takes other arguments."""
        assert self.agent is not None, "a command has no function"
        function = own.load(self.agent)
        try:
            inspect.signature(function).bind(base_url="", api_key="", model="", task={})
        except (TypeError, ValueError) as error:
            raise Refused(f"agent={self.agent}: cannot be called: {error}", _DEFINE) from error
        found: Callable[..., Any] = function
        return found


def _reference(key: str, value: object) -> str:
    if isinstance(value, str) and ":" in value:
        return value
    raise Refused(f"{key}={value!r}: names no function", "write my_module:agent")


def _words(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        words = tuple(value)
        if words and all(isinstance(word, str) and word and "\0" not in word for word in words):
            return words
    raise Refused(f"{key}={value!r}: is no list of words", "write [python,my_agent.py]; no shell reads it")


def _count(key: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise Refused(f"{key}={value!r}: is no count", "give a whole number of at least 1")


def _truth(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise Refused(f"{key}={value!r}: is no truth value", "give true or false")


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "agent": _reference,
    "command": _words,
    "max_calls": _count,
    "network": _truth,
}
