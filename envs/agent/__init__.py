"""`env=agent`: a user's program that asks the model over HTTP, as it would ask OpenAI (docs/agents.md).

settings ─▶ env (one episode) ─▶ programs (the user's function or command) ─▶ HTTP ─▶ server ─▶ requests
              ▲                                                                          │
              └────────────────────────── conversation (a queue) ◀───────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpost.envs.agent.env import AgentEnv
from rlpost.envs.agent.settings import Settings
from rlpost.envs.base import VariantInfo
from rlpost.envs.dataset.table import load


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """Make the environment. Raises Refused (a ValueError) for bad arguments, files and rows."""
    return AgentEnv(Settings.checked(args))


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    return list(load(Settings.checked(args).tasks).variants.values())


def causes(name: str) -> Mapping[str, str]:
    """Empty: only the program knows why its answer is not right."""
    return {}
