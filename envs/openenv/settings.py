"""What an OpenEnv environment is told: how text becomes an action, and which of an observation is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlpost.envs.errors import Refused

OBSERVATION, SEED = "observation", "seed"
_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Settings:
    """The arguments of `env=openenv:...`.

    Args:
        action_field: the field of an action that the answer's text becomes; by default the only one that it needs.
        action: further fields of every action.
        observation_field: the field, or the list of fields, of an observation that the model reads; by default the
            only one with text after the first reset.
        reset: what every reset is asked for, beside the seed.
        instance: what names an instance: `observation`, a hash of what is said first, or `seed`, for environments that
            say the same first whatever they hide.
        max_turns: answers after which an episode is truncated; none: no more than the context holds.
        timeout_s: for each of the server's answers.
    """

    action_field: str | None = None
    action: Mapping[str, Any] = field(default_factory=dict)
    observation_field: tuple[str, ...] = ()
    reset: Mapping[str, Any] = field(default_factory=dict)
    instance: str = OBSERVATION
    max_turns: int | None = None
    timeout_s: float = 30.0

    @classmethod
    def checked(cls, args: Mapping[str, Any]) -> Settings:
        """Refused for unknown and ill-typed arguments."""
        known = [each.name for each in fields(cls)]
        if unknown := sorted(args.keys() - set(known)):
            raise Refused(f"openenv: unknown argument {', '.join(unknown)}", f"there are: {', '.join(known)}")
        given = dict(args)
        if isinstance(given.get("observation_field"), str):
            given["observation_field"] = [given["observation_field"]]
        for key, value in given.items():
            _check(key, value)
        if "observation_field" in given:
            given["observation_field"] = tuple(given["observation_field"])
        return cls(**given)


def _check(key: str, value: Any) -> None:
    fine, wanted = _WANTED[key]
    if not fine(value):
        raise Refused(f"openenv: {key}={value!r}: is not {wanted}", f"give {wanted}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _names(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(each, str) and each for each in value)
    )


def _turns(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "action_field": (lambda value: isinstance(value, str) and bool(value), "a field's name"),
    "action": (_plain, "a mapping"),
    "observation_field": (_names, "a field's name, or a list of them"),
    "reset": (
        lambda value: _plain(value) and "seed" not in value,
        "a mapping without a seed, which rlpost draws",
    ),
    "instance": (lambda value: value in (OBSERVATION, SEED), f"{OBSERVATION} or {SEED}"),
    "max_turns": (_turns, "a whole number above 0"),
    "timeout_s": (lambda value: _number(value) and 0 < value <= _LONGEST_S, f"seconds, up to {_LONGEST_S:g}"),
}
