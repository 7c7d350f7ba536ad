"""The command line that says the same as the arguments of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import gymnasium

from rlpost.config.keys import leaves, refusal
from rlpost.config.overrides import SHORT, Override, Word
from rlpost.envs import given
from rlpost.errors import ConfigError

Function = Callable[..., Any]
Rows = Iterable[Mapping[str, Any]]


def words(
    experiment: str | Path | None,
    resume: str | Path | None,
    settings: Mapping[str, Any] | None,
    settled: Mapping[str, Any],
) -> list[Word]:
    """The command line that says the same. Raises ConfigError for what is given twice, or is no setting's value."""
    typed = {SHORT.get(key, key): value for key, value in leaves(dict(settings or {}))}
    starts = {
        key: value for key, value in (("experiment", experiment), ("resume", resume)) if value is not None
    }
    if both := sorted(typed.keys() & {**settled, **starts}.keys()):
        raise ConfigError(
            refusal(
                both[0], typed[both[0]], "it is given twice, here and by another argument", "give it once"
            )
        )
    return [
        Override(key, str(value), _value(key, value)) for key, value in {**starts, **typed, **settled}.items()
    ]


def rows_given(data: str | Path | Rows | None) -> Rows | None:
    """Rows that are given as objects; None where they are in a file."""
    return None if isinstance(data, (str, Path)) else data


def named(
    handover: given.Handover,
    env: object,
    data: object,
    reward: object,
    reward_model: object,
) -> dict[str, Any]:
    """Settings for what was given as an object, by key."""
    settled: dict[str, Any] = {}
    if env is not None:
        settled["env"] = env if isinstance(env, str) else handover.reference(_env_class(env))
    if data is not None:
        if env not in (None, "dataset"):
            raise ConfigError(
                refusal("data", "...", "rows are played by env=dataset", "leave env= out, or data=")
            )
        settled["env"] = "dataset"
        if isinstance(data, (str, Path)):
            settled["env_args.path"] = data
    if reward is not None:
        if isinstance(reward, Sequence) and not isinstance(reward, str):
            settled["env_args.score"] = [_function(handover, "reward", each) for each in reward]
        else:
            settled["env_args.score"] = _function(handover, "reward", reward)
    if reward_model is not None:
        settled["algo.reward_function"] = _function(handover, "reward_model", reward_model)
    return settled


def _env_class(env: object) -> type:
    if not (isinstance(env, type) and issubclass(env, gymnasium.Env)):
        what = "an environment" if isinstance(env, gymnasium.Env) else repr(env)
        raise ConfigError(
            refusal(
                "env",
                what,
                "it is no class that derives from gymnasium.Env",
                "give the class, of which each worker makes its own, and its arguments as settings={'env_args': ...}",
            )
        )
    return env


def _function(handover: given.Handover, key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, type) or not callable(value):
        raise ConfigError(refusal(key, repr(value), "it is no function", "give a function, or module:name"))
    return handover.reference(value)


def _value(key: str, value: Any) -> Any:
    """What a YAML file would say. Raises ConfigError for what it cannot."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _value(f"{key}.{name}", each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(key, each) for each in value]
    raise ConfigError(
        refusal(
            key,
            repr(value),
            f"no setting takes a value of type {type(value).__name__}",
            "give text, numbers, lists or dicts of these; classes and functions as env=, reward= and reward_model=",
        )
    )
