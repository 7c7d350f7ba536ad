"""`env=dataset`: prompts from a file, each answered once and scored by functions (envs/registry.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpost.envs.base import VariantInfo
from rlpost.envs.dataset.env import Dataset, Taught
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.dataset.table import load


def make(name: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """Make the environment. Raises Refused (a ValueError) for bad arguments, files and rows."""
    settings = Settings.checked(args)
    table = load(settings)
    return Taught(settings, table) if table.teaches else Dataset(settings, table)


def variants(name: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    return list(load(Settings.checked(args)).variants.values())


def causes(name: str) -> Mapping[str, str]:
    """Empty: an answer is right or not, and nothing explains why."""
    return {}
