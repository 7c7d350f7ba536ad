"""`env=openenv:http://HOST:PORT`: an environment that a server of OpenEnv offers (envs/registry.py).

The server runs wherever its own packages are installed, a container for most; here it is spoken to over its WebSocket
(connection.py), one session an environment. Tried with servers of openenv 0.10.0. settings.py has the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpost.envs.adapter import ONLY_VARIANT, Adapted
from rlpost.envs.base import VariantInfo
from rlpost.envs.openenv.connection import address
from rlpost.envs.openenv.env import OpenEnv
from rlpost.envs.openenv.settings import Settings


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """Refused (a ValueError) for a bad address or argument, a server that is away, and actions that are no text."""
    return Adapted(OpenEnv(address(_url(name)), Settings.checked(args)))


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    address(_url(name))
    return [ONLY_VARIANT]


def causes(name: str) -> Mapping[str, str]:
    """None: the server does not say why."""
    return {}


def _url(name: str) -> str:
    return name.partition(":")[2]
