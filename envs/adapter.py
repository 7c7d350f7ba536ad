"""Adapts any Gymnasium environment with texts or messages to what the rest of the project needs."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.spaces import Text

from rlpost.envs.base import MAX_REWARD, PlainVariant, WithTools
from rlpost.envs.choices import choose
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Said, messages_of, readable
from rlpost.envs.splits import Split, split_of

ONLY_VARIANT = PlainVariant("default", False, "the environment as it is")
MAX_RESETS = 1000  # resets in search of an instance of the wanted split


def check_interface(env: gymnasium.Env[Any, Any], name: str) -> None:
    """Raise Refused unless observations and actions are texts and `metadata` is a mapping, as Gymnasium requires."""
    for kind in ("observation", "action"):
        define = f"define self.{kind}_space = gymnasium.spaces.Text(LONGEST, charset=CHARACTERS) in __init__"
        space = getattr(env, f"{kind}_space", None)
        if space is None:
            raise Refused(f"{name}: it has no {kind}_space", define)
        if not isinstance(space, Text):
            raise Refused(f"{name}: its {kind} space is {space}, but must be gymnasium.spaces.Text", define)
    if not isinstance(env.metadata, Mapping):
        raise Refused(
            f"{name}: its metadata is {env.metadata!r}, not a mapping", "leave it out, or give a dict"
        )


def opened(returned: object) -> tuple[Said, dict[str, Any]]:
    """The return value of `reset`, checked to be (observation, info): a text of two letters would also unpack.

    Raises Refused for another shape, and like `messages_of` for an observation that is neither text nor messages.
    """
    match returned:
        case (observation, Mapping() as info):
            return _said(observation), dict(info)
    raise Refused(f"reset returned {_shape(returned)}", "return (observation, info), info a dict")


def stepped(returned: Any) -> tuple[Said, SupportsFloat, bool, bool, dict[str, Any]]:
    """The return value of `step`: (observation, reward, terminated, truncated, info). Raises like `opened`."""
    match returned:
        case (observation, reward, terminated, truncated, Mapping() as info):
            return _said(observation), reward, terminated, truncated, dict(info)
    raise Refused(
        f"step returned {_shape(returned)}",
        "return (observation, reward, terminated, truncated, info), info a dict",
    )


def field(info: Mapping[str, Any], name: str, method: str) -> Any:
    """An entry of `info`. Raises Refused if the method, reset or step, does not provide it."""
    if name not in info:
        raise Refused(
            f"the info of {method} has no {name!r}",
            "give it (docs/tutorial.md); an environment without `variants` gets one",
        )
    return info[name]


def parts(given: object) -> tuple[tuple[str, float], ...]:
    """`info["parts"]`, the reward's parts by name. Raises TypeError and ValueError for what are none."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"the info of step has parts of type {type(given).__name__}: give a dict of numbers by name"
        )
    return tuple((in_utf8(str(name)), reward(float(value))) for name, value in given.items())


def reward(value: float) -> float:
    """Raises ValueError for a reward that no update survives: not finite, or above MAX_REWARD."""
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value}")
    if abs(value) > MAX_REWARD:
        raise ValueError(f"the reward is {value:g}: at most {MAX_REWARD:g} can be learnt from")
    return value


def word(info: Mapping[str, Any], name: str) -> str | None:
    """What the environment may say in a word or a number, as text; None where it says nothing.

    Raises ValueError for a number that is not finite, and TypeError for anything else: a list or a dict would make a
    category of its own for almost every instance.
    """
    value = info.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"info[{name!r}] is no word and no number but {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"info[{name!r}] is {value}, and no finite number")
    return in_utf8(value if isinstance(value, str) else f"{value:.12g}")


def in_utf8(text: str) -> str:
    """`text`, which tokenizers and files take as UTF-8. Raises ValueError for a lone surrogate."""
    text.encode()
    return text


def tools_of(env: gymnasium.Env[Any, str]) -> tuple[Mapping[str, Any], ...]:
    """The tools that an environment declares for its current instance (base.WithTools); empty for most.

    Raises Refused for a tool that is not a named function as JSON.
    """
    inner = env.unwrapped
    tools = tuple(inner.tools) if isinstance(inner, WithTools) else ()
    for tool in tools:
        match tool:
            case {"type": "function", "function": {"name": str() as name}} if name and _is_json(tool):
                continue
        raise Refused(
            f"the environment declares the tool {tool!r}",
            'give {"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}',
        )
    return tools


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _said(observation: Any) -> Said:
    messages_of(observation)
    said: Said = observation
    return said


def _shape(returned: object) -> str:
    """The types of a tuple's parts, or the type of any other object."""
    if isinstance(returned, tuple):
        return f"({', '.join(type(part).__name__ for part in returned)})"
    return type(returned).__name__


class Adapted(gymnasium.Wrapper[Any, str, Any, str]):
    """Wraps an environment that has no variants, no splits and no named outcomes.

    The environment's own values in `info` are kept. If one is missing: `info["instance"]` is a hash of the first
    observation, and instances are reset until one belongs to the split; `info["success"]` means terminated with a
    reward above 0; `info["outcome"]` is SUCCESS, FAILURE or CONTINUED.
    """

    def __init__(self, env: gymnasium.Env[Any, str]) -> None:
        super().__init__(env)
        self._rng = random.Random()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        given = {"variant": ONLY_VARIANT.name, "split": Split.ALL.value, **(options or {})}
        if given["variant"] != ONLY_VARIANT.name:
            raise ValueError(f"variant={given['variant']!r}: this environment has only {ONLY_VARIANT.name!r}")
        split = choose(Split, "split", given["split"])
        if seed is not None:
            self._rng = random.Random(seed)
        for _ in range(MAX_RESETS):
            observation, info = opened(self.env.reset(seed=self._rng.randrange(2**31)))
            if "instance" not in info:
                told = readable(observation).encode("utf-8", "surrogatepass")
                info = {**info, "instance": hashlib.sha256(told).hexdigest()[:16]}
            if split is Split.ALL or split_of(str(info["instance"])) is split:
                return observation, info
        raise ValueError(
            f"none of {MAX_RESETS} instances is of split {split.value!r}: there are too few; use 'all'"
        )

    def step(self, action: str) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = stepped(self.env.step(action))
        if "success" not in info:
            info["success"] = bool(terminated and float(reward) > 0)
        if "outcome" not in info:
            over = "SUCCESS" if info["success"] else "FAILURE"
            info["outcome"] = over if terminated or truncated else "CONTINUED"
        return observation, float(reward), terminated, truncated, info
