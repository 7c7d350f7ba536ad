"""What a replayed iteration has other than its record: the first figure, or the first token of an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rlpost.types import Trajectory, Turn


def first_figure(recorded: Mapping[str, Any], now: Mapping[str, float]) -> tuple[str | None, int]:
    """The first figure that differs, in the order of the recorded line, and how many were compared.

    A figure that only one side has is not compared: another version of rlpost may measure more. A number that is not
    finite is null in a record.
    """
    shared = [name for name in recorded if name in now]
    for name in shared:
        replayed = now[name] if math.isfinite(now[name]) else None
        if replayed != recorded[name]:
            return (
                f"{name} is {recorded[name]} on record, {replayed} now{_apart(recorded[name], replayed)}",
                len(shared),
            )
    return None, len(shared)


def _apart(recorded: Any, now: float | None) -> str:
    return "" if now is None or not isinstance(recorded, int | float) else f" (by {abs(now - recorded):.3g})"


def first_token(recorded: Sequence[Trajectory], now: Sequence[Trajectory]) -> str | None:
    """The first episode that was played in another way, and its first token that differs; None if all are equal.

    Both sides have the same episodes in the same order. Rewards are the environment's own on both sides.
    """
    for then, again in zip(recorded, now, strict=True):
        if difference := _of_episode(then, again):
            where = f"episode {then.episode} (group {then.group}, {then.variant}, instance {then.instance})"
            return f"{where}: {difference}"
    return None


def _of_episode(then: Trajectory, now: Trajectory) -> str | None:
    if then.instance != now.instance:
        return f"the instance is {now.instance} now"
    for number, turns in enumerate(zip(then.turns, now.turns, strict=False)):
        if difference := _of_turn(*turns):
            return f"turn {number}, {difference}"
    for what, before, after in (
        ("turns", len(then.turns), len(now.turns)),
        ("ending", then.ending.value, now.ending.value),
        ("success", then.success, now.success),
        ("error", then.error, now.error),
    ):
        if before != after:
            return f"{what}: {before} on record, {after} now"
    return None


def _of_turn(then: Turn, now: Turn) -> str | None:
    for what, before, after in (
        ("environment's token", then.context_ids, now.context_ids),
        ("sampled token", then.answer_ids, now.answer_ids),
        ("log-prob", then.logprobs, now.logprobs),
        ("reward", (_own_reward(then),), (_own_reward(now),)),
        ("outcome", (then.outcome,), (now.outcome,)),
    ):
        for place, (x, y) in enumerate(zip_longest(before, after)):
            if not _same(x, y):
                return f"{what} {place}: {_shown(x)} on record, {_shown(y)} now"
    return None


def _own_reward(turn: Turn) -> float:
    """The environment's reward, which a reward function or a control may have replaced."""
    return turn.reward if turn.env_reward is None else turn.env_reward


def _same(x: object, y: object) -> bool:
    return x == y or (isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y))


def _shown(value: object) -> object:
    return "none" if value is None else value
