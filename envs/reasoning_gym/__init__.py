"""`env=reasoning_gym:TASK`: the tasks of the package reasoning-gym (envs/registry.py).

Arguments are the task's own settings, and `answer_tag` (default true), which asks for the answer between tags and reads
it there, as the package's own evaluation does. Without it the model's whole text is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpost.envs.base import VariantInfo
from rlpost.envs.errors import Refused
from rlpost.envs.reasoning_gym.env import Answered, ReasoningGym
from rlpost.envs.reasoning_gym.tasks import TaskOf, task


def _settings(args: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    settings = dict(args)
    answer_tag = settings.pop("answer_tag", True)
    if not isinstance(answer_tag, bool):
        raise Refused(f"answer_tag={answer_tag!r}: is no truth value", "give true or false")
    return settings, answer_tag


def _task(name: str, settings: Mapping[str, Any]) -> TaskOf:
    return task(name.partition(":")[2], settings)


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """The environment of a task. Raises Refused (a ValueError) for an unknown task or setting or a missing package."""
    settings, answer_tag = _settings(args)
    found = _task(name, settings)
    return Answered(found, answer_tag) if found.has_answers else ReasoningGym(found, answer_tag)


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    return list(_task(name, _settings(args)[0]).variants.values())


def causes(name: str) -> Mapping[str, str]:
    """No causes: an answer is right or wrong, and nothing says why."""
    return {}
