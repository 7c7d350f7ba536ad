"""`env=verifiers:ENV_ID`: environments written for the package verifiers, Prime Intellect's (envs/registry.py).

    verifiers:wordle                   an installed environment; `env_args` are the arguments of its load_environment

The package's own code plays and scores an episode; this bridge stands where it expects a model (player.py). Tried with
verifiers 0.3.1, whose `load_environment` takes an id and arguments; 0.4 has another one, of its v1 tasksets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpost.envs.adapter import ONLY_VARIANT
from rlpost.envs.base import VariantInfo
from rlpost.envs.verifiers.env import Verifiers
from rlpost.envs.verifiers.package import environment_module


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """Refused (a ValueError) where the package or the environment is not installed, and for what is not carried."""
    return Verifiers(_id(name), args)


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    environment_module(_id(name))
    return [ONLY_VARIANT]


def causes(name: str) -> Mapping[str, str]:
    """None: rewards of these environments do not say why."""
    return {}


def _id(name: str) -> str:
    return name.partition(":")[2]
