"""Any Gymnasium environment with text spaces, given what the rest of the project asks for."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from envs.base import PlainVariant
from envs.choices import choose
from envs.splits import Split, split_of

ONLY_VARIANT = PlainVariant("default", False, "the environment as it is")
MAX_RESETS = 1000  # for an instance of the wanted split


def check_spaces(env: gymnasium.Env[Any, Any], name: str) -> None:
    """ValueError unless observations and actions are texts."""
    for kind, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Text):
            raise ValueError(f"{name}: its {kind} space is {space}, but must be gymnasium.spaces.Text")


class Adapted(gymnasium.Wrapper[str, str, str, str]):
    """An environment that knows nothing of variants and splits, or of names for what came of an answer.

    `info["instance"]`, where it gives none, is a hash of the first observation; instances are reset until one is
    of the split. `info["success"]`, where it gives none: terminated with a reward above 0. `info["outcome"]`:
    SUCCESS, FAILURE or CONTINUED. A wrapped environment's own values are kept.
    """

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self._rng = random.Random()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        given = {"variant": ONLY_VARIANT.name, "split": Split.ALL.value, **(options or {})}
        if given["variant"] != ONLY_VARIANT.name:
            raise ValueError(f"variant={given['variant']!r}: this environment has only {ONLY_VARIANT.name!r}")
        split = choose(Split, "split", given["split"])
        if seed is not None:
            self._rng = random.Random(seed)
        for _ in range(MAX_RESETS):
            observation, info = self.env.reset(seed=self._rng.randrange(2**31))
            if "instance" not in info:
                told = observation.encode("utf-8", "surrogatepass")
                info = {**info, "instance": hashlib.sha256(told).hexdigest()[:16]}
            if split is Split.ALL or split_of(str(info["instance"])) is split:
                return observation, info
        raise ValueError(
            f"none of {MAX_RESETS} instances is of split {split.value!r}: there are too few; use 'all'"
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = dict(info)
        if "success" not in info:
            info["success"] = bool(terminated and float(reward) > 0)
        if "outcome" not in info:
            over = "SUCCESS" if info["success"] else "FAILURE"
            info["outcome"] = over if terminated or truncated else "CONTINUED"
        return observation, float(reward), terminated, truncated, info
