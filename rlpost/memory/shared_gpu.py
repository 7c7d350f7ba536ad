"""The memory of a GPU that rollout workers and a learner rank share: at once, or in turns (rollout.sleep)."""

from __future__ import annotations

from rlpost.config.schema import Config
from rlpost.memory.parts import Plan

_EXACT = 1e-9  # of shares of a GPU, whose sums are not exact


def engines_beside_a_rank(cfg: Config) -> int:
    """The rollout workers that Ray puts on a learner rank's GPU; 0 if none fits beside it, or one has no GPU."""
    rollout, learner = cfg.rollout, cfg.learner
    if rollout.gpus == 0 or learner.gpus == 0:
        return 0
    return min(rollout.workers, int((1 - learner.gpus) / rollout.gpus + _EXACT))


def least(plan: Plan, cfg: Config, gpu: int) -> int:
    """Bytes that every run takes of a shared GPU with `gpu` bytes. `plan` has workers and ranks.

    An awake engine takes rollout.gpu_memory_utilization of it. With rollout.sleep the result is the larger turn: the
    engines' (their shares, and what the learner keeps), or the learner's (all of it, and what engines keep).
    """
    engine, rank, count = plan.named("rollout worker"), plan.named("learner rank"), engines_beside_a_rank(cfg)
    awake = count * int(gpu * cfg.rollout.gpu_memory_utilization)
    if not cfg.rollout.sleep:
        return awake + rank.device_size(certain_only=True)
    engines_turn = awake + rank.kept_size(certain_only=True)
    learners_turn = rank.device_size(certain_only=True) + count * engine.kept_size(certain_only=True)
    return max(engines_turn, learners_turn)
