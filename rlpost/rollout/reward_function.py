"""`algo.reward_function`: a user's function gives episodes their rewards, for reward models and judges.

    played ──▶ function(list of Trajectory) ──▶ the same episodes with other rewards ──▶ checked ──▶ learner
               in the main process, within rollout.timeout_s

The function may change the rewards of turns and nothing else: tokens and log-probs are what the engine sampled, and an
update on others would be silently wrong. The environment's reward stays in `Turn.env_reward`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from rlpost.config.schema import Config
from rlpost.envs import own
from rlpost.envs.base import MAX_REWARD
from rlpost.envs.errors import Refused
from rlpost.errors import RolloutError
from rlpost.rollout.env_threads import within
from rlpost.types import Trajectory, Turn

Score = Callable[[list[Trajectory]], list[Trajectory]]
DEADLINE = "rollout.timeout_s"
_DEFINE = "define it as: def rewards(episodes: list[Trajectory]) -> list[Trajectory] (docs/extending.md)"


def load(reference: str) -> Score:
    """Import the function `module:name`. Raises Refused if it cannot be imported or called with a list of episodes."""
    function = own.load(reference)
    if isinstance(function, type) or not callable(function):
        what = "a class" if isinstance(function, type) else f"of type {type(function).__name__}"
        raise Refused(f"{reference} is no function but {what}", _DEFINE)
    try:
        inspect.signature(function).bind([])
    except (TypeError, ValueError) as error:
        raise Refused(f"{reference} cannot be called with a list of episodes: {error}", _DEFINE) from error
    return function


def reward_function(cfg: Config) -> Score | None:
    """The configured function with its results checked; None if the environment's rewards are used.

    It raises RolloutError if the function raises or takes longer than rollout.timeout_s, and if it returns other
    episodes, changes more than rewards, or gives a reward that is not finite.
    """
    reference = cfg.algo.reward_function
    return (
        None if reference is None else partial(_rewarded, reference, load(reference), cfg.rollout.timeout_s)
    )


def _rewarded(
    reference: str, function: Score, timeout_s: float, played: Sequence[Trajectory]
) -> list[Trajectory]:
    what = f"algo.reward_function={reference}"
    try:
        returned: Any = within(timeout_s, what, lambda: function(list(played)), DEADLINE)
    except RolloutError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise RolloutError(f"{what}: {own.told(error)}{_remedy(reference)}") from error
    if not isinstance(returned, list):
        raise RolloutError(
            f"{what} returned no list of episodes but {type(returned).__name__}{_remedy(reference)}"
        )
    if len(returned) != len(played):
        raise RolloutError(f"{what} returned {len(returned)} episodes of {len(played)}{_remedy(reference)}")
    for before, after in zip(played, returned, strict=True):
        if wrong := next(_faults(before, after), None):
            told = f"{what}: episode {before.episode} (instance {before.instance}): {wrong}"
            raise RolloutError(f"{told}{_remedy(reference)}")
    return [_with_rewards(before, after) for before, after in zip(played, returned, strict=True)]


def _remedy(reference: str) -> str:
    """The lines that end an error: the record is whole, so that the run can go on."""
    return f"\n  remedy: mend the function, then go on with resume=RUN algo.reward_function={reference}"


def _faults(before: Trajectory, after: Any) -> Iterator[str]:
    """The errors in an episode that the function returned."""
    if not isinstance(after, Trajectory):
        yield f"came back as {type(after).__name__}"
        return
    yield from (f"its {name} was changed" for name in _changed(before, after, "turns"))
    turns: Any = after.turns  # the user's code may have put anything there
    if not isinstance(turns, Sequence):
        yield f"its turns came back as {type(turns).__name__}"
        return
    if len(turns) != len(before.turns):
        yield f"has {len(turns)} turns of {len(before.turns)}"
        return
    for k, (turn, now) in enumerate(zip(before.turns, turns, strict=True)):
        yield from (f"{name} of turn {k} was changed" for name in _changed(turn, now, "reward"))
        reward: Any = now.reward
        if not isinstance(reward, numbers.Real):
            yield f"the reward of turn {k} is no number but {type(reward).__name__}"
        elif not math.isfinite(as_float := _as_float(reward)):
            yield f"the reward of turn {k} is {as_float}"
        elif abs(as_float) > MAX_REWARD:
            yield f"the reward of turn {k} is {as_float:g}: at most {MAX_REWARD:g} can be learnt from"


def _as_float(reward: Any) -> float:
    """A real number as a float: infinite for an int or a Fraction that is too large for one."""
    try:
        return float(reward)
    except OverflowError:
        return math.copysign(math.inf, reward > 0 or -1)


def _changed(before: Trajectory | Turn, after: Any, free: str) -> Iterator[str]:
    """The names of changed fields, except `free`."""
    names = [field.name for field in fields(before) if field.name != free]
    missing = object()
    yield from (name for name in names if getattr(after, name, missing) != getattr(before, name))


def _with_rewards(before: Trajectory, after: Trajectory) -> Trajectory:
    pairs = zip(before.turns, after.turns, strict=True)
    return replace(
        before,
        turns=tuple(replace(turn, reward=float(now.reward), env_reward=turn.reward) for turn, now in pairs),
    )
