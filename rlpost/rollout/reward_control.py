"""`algo.reward_control`: rewards that say nothing about an episode's own answers, as controls of what RL learns from.

    played ─▶ algo.reward_function, if any ─▶ algo.reward_control ─▶ dynamic sampling ─▶ learner

A control keeps everything else: episodes, groups, and how many rewards of which size there are (shuffled), or how often
success is paid (random). What an arm still gains comes from sampling its own answers and from the optimizer, not from
the reward (arXiv 2506.10947). `success` and all evaluations stay the environment's, and so does `Turn.env_reward`.

A control pays the whole episode, on its last turn. Episodes that the environment broke, and those without any answer,
keep what they have: the learner does not use them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rlpost.config.schema import Config, RewardControl
from rlpost.rollout.reward_function import Score, reward_function
from rlpost.seeds import derive
from rlpost.types import Trajectory, Turn


def shuffled(played: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """The episodes with their totals permuted over all of them, groups included.

    The multiset of totals stays. The permutation depends on the seed, the iteration and the episodes' numbers, not on
    the order of `played`.
    """
    paid = sorted((t for t in played if _is_paid(t)), key=lambda t: t.episode)
    totals = [t.total_reward for t in paid]
    _dice(seed, paid).shuffle(totals)
    return _with_totals(played, dict(zip((t.episode for t in paid), totals, strict=True)))


def random_rewards(played: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """The episodes with a reward of 1 or 0 each, drawn independently: 1 with the share of `played` that succeeded."""
    paid = sorted((t for t in played if _is_paid(t)), key=lambda t: t.episode)
    share, dice = sum(t.success for t in paid) / max(1, len(paid)), _dice(seed, paid)
    return _with_totals(played, {t.episode: float(dice.random() < share) for t in paid})


CONTROLS = {RewardControl.shuffled: shuffled, RewardControl.random: random_rewards}


def rewards_to_learn_from(cfg: Config) -> Score | None:
    """What replaces the environment's rewards: the user's function, then the control; None if neither is configured.

    Raises what `reward_function` raises.
    """
    function, control = reward_function(cfg), CONTROLS.get(cfg.algo.reward_control)
    if control is None:
        return function
    controlled = partial(control, seed=cfg.seed)
    return controlled if function is None else lambda played: controlled(function(played))


def _is_paid(played: Trajectory) -> bool:
    return bool(played.turns) and not played.ending.broken


def _dice(seed: int, paid: Sequence[Trajectory]) -> random.Random:
    """The random draws of a batch. Rounds of dynamic sampling differ in their first episode's number."""
    address = (paid[0].iteration, paid[0].episode) if paid else ()
    return random.Random(derive(seed, "reward control", *address))


def _with_totals(played: Sequence[Trajectory], totals: dict[int, float]) -> list[Trajectory]:
    """Each episode of `totals` (by number) with its total on the last turn and 0 on the others."""
    return [
        replace(t, turns=_turns(t.turns, [0.0] * (len(t.turns) - 1) + [totals[t.episode]]))
        if t.episode in totals
        else replace(t, turns=_turns(t.turns, [turn.reward for turn in t.turns]))
        for t in played
    ]


def _turns(turns: Sequence[Turn], rewards: Sequence[float]) -> tuple[Turn, ...]:
    """The turns with other rewards. Each keeps the environment's, also where a reward function replaced that before."""
    return tuple(
        replace(turn, reward=reward, env_reward=turn.reward if turn.env_reward is None else turn.env_reward)
        for turn, reward in zip(turns, rewards, strict=True)
    )
