"""Which environments a model behind an endpoint can play: those that need only text from it."""

from __future__ import annotations

from typing import Any

import gymnasium

from rlpost.envs.asking import Asking


def unplayable(env: gymnasium.Env[Any, str], tools: bool) -> str | None:
    """Why an endpoint cannot play the environment, which declares `tools` or none; None if it can."""
    if isinstance(env.unwrapped, Asking):
        return "its program asks a model of this machine itself"
    if tools:
        return "it declares tools, and servers return calls in their own form, not as the model wrote them"
    return None
