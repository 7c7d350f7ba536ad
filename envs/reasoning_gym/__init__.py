"""`env=reasoning_gym:TASK`: the tasks of the package reasoning-gym (envs/registry.py).

Arguments are the task's own settings and two of ours. `answer_tag` (default true) asks for the answer between tags and
reads it there, as the package's own evaluation does; without it the model's whole text is the answer. `held_out` adds
variants for evaluation, by name: the settings in which each differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium

from rlpost.envs.base import VariantInfo
from rlpost.envs.errors import Refused
from rlpost.envs.reasoning_gym.env import Answered, ReasoningGym
from rlpost.envs.reasoning_gym.tasks import TaskOf, task


@dataclass(frozen=True)
class _Arguments:
    task: TaskOf
    answer_tag: bool

    @staticmethod
    def of(name: str, args: Mapping[str, Any]) -> _Arguments:
        settings = dict(args)
        answer_tag, held_out = settings.pop("answer_tag", True), settings.pop("held_out", {})
        if not isinstance(answer_tag, bool):
            raise Refused(f"answer_tag={answer_tag!r}: is no truth value", "give true or false")
        return _Arguments(task(name.partition(":")[2], settings, held_out), answer_tag)


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """The environment of a task. Raises Refused (a ValueError) for an unknown task or setting or a missing package."""
    found = _Arguments.of(name, args)
    kind = Answered if found.task.has_answers else ReasoningGym
    return kind(found.task, found.answer_tag)


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    return list(_Arguments.of(name, args).task.variants.values())


def causes(name: str) -> Mapping[str, str]:
    """No causes: an answer is right or wrong, and nothing says why."""
    return {}
