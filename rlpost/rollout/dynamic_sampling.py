"""Dynamic sampling: groups whose episodes all have the same reward are replaced by groups on other instances.

    round 0: groups 0 .. G-1 ─▶ flat ones ─▶ round 1: as many new groups, numbered on from G ─▶ flat ones ─▶ ...
    ends when none is flat, or after `max_refills` rounds; groups still flat then stay in the batch, and are counted

A flat group has advantage 0 and so no gradient (arXiv 2503.14476, section 3.2). Replaced episodes teach nothing but
stay on record: they count in the rollout's metrics and are written with the other episodes.
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
    """`batch` is what the learner gets, always `rollout.episodes` episodes; `played` also holds the replaced ones."""

    batch: list[Trajectory]
    played: list[Trajectory]
    metrics: dict[str, float]


def collect(play: Play, cfg: Config, iteration: int) -> Collected:
    """Play an iteration's episodes, and replacements for flat groups if `algo.dynamic_sampling` is set."""
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
    """Whether all episodes that the learner can use (those not broken by the environment) have the same reward.

    This is what rlpost.algorithms.advantages.flat counts.
    """
    earned = [t.total_reward for t in group if not t.ending.broken]
    return not earned or math.isclose(min(earned), max(earned), rel_tol=EQUAL_WITHIN)


def _groups(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    return [list(members) for _, members in groupby(trajectories, key=lambda t: t.group)]
