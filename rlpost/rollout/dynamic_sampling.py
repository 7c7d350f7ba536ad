"""Dynamic sampling: groups whose episodes all earned the same are played again on other instances.

    round 0: groups 0 .. G-1 ─▶ flat ones ─▶ round 1: as many new groups, numbered on from G ─▶ flat ones ─▶ ...
    ends when none is flat, or after `max_refills` rounds; what is flat then stays in the batch, and is counted

A flat group has advantage 0 and so no gradient (arXiv 2503.14476, section 3.2). What is replaced is played for
nothing but is not forgotten: it counts in the rollout's metrics and is written with the other episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rlpost.algorithms.advantages import EQUAL_WITHIN
from rlpost.config.schema import Config
from rlpost.rollout.specs import group_specs
from rlpost.types import EpisodeSpec, Trajectory

Play = Callable[[Sequence[EpisodeSpec]], list[Trajectory]]


@dataclass(frozen=True)
class Collected:
    """`batch` is what to learn from, always `rollout.episodes`; `played` holds also what was replaced."""

    batch: list[Trajectory]
    played: list[Trajectory]
    metrics: dict[str, float]


def collect(play: Play, cfg: Config, iteration: int) -> Collected:
    """Play an iteration's episodes, and those that replace flat groups if `algo.dynamic_sampling` asks for it."""
    count = cfg.rollout.episodes // cfg.rollout.group_size
    groups = _groups(play(group_specs(cfg, iteration, range(count))))
    played, rounds = list(groups), 0
    flat = [i for i, group in enumerate(groups) if is_flat(group)]
    while cfg.algo.dynamic_sampling and flat and rounds < cfg.algo.max_refills:
        numbers = range(len(played), len(played) + len(flat))
        fresh = _groups(play(group_specs(cfg, iteration, numbers)))
        for i, group in zip(flat, fresh, strict=True):
            groups[i] = group
        played += fresh
        rounds += 1
        flat = [i for i in flat if is_flat(groups[i])]
    metrics = {
        "refill/rounds": float(rounds),
        "refill/groups_played": float(len(played)),
        "refill/groups_replaced": float(len(played) - count),
        "refill/groups_flat": float(len(flat)),
    }
    return Collected(
        [t for group in groups for t in group],
        [t for group in played for t in group],
        metrics if cfg.algo.dynamic_sampling else {},
    )


def is_flat(group: Sequence[Trajectory]) -> bool:
    """Whether the episodes that can be learnt from, those not broken by the environment, all earned the same, as
    rlpost.algorithms.advantages.flat counts it."""
    earned = [t.total_reward for t in group if not t.ending.broken]
    return not earned or math.isclose(min(earned), max(earned), rel_tol=EQUAL_WITHIN)


def _groups(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    return [list(members) for _, members in groupby(trajectories, key=lambda t: t.group)]
