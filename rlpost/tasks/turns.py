"""`rollout.sleep`: engines and learner take turns on a GPU.

    engines start ─▶ sleep ─▶ the learner starts ─▶ engines wake ─▶ play ─▶ sleep ─▶ the learner works
                                                          ▲                               │ and releases what it freed
                                                          └───── swap ◀───── wake ◀───────┘

The learner keeps its weights and optimizer states on the GPU while engines play. The pool wakes by itself before any
use (rlpost/rollout/pool.py); an iteration wakes it here, so that the time is its own phase. The learner's work inside a
phase (a held-out loss, a KL to the start) calls `pool.sleep`, and that phase has the time.
"""

from __future__ import annotations

from rlpost.config.schema import Config
from rlpost.record.metrics import Clock
from rlpost.rollout.pool import RolloutPool


def before_the_learner(cfg: Config, pool: RolloutPool) -> None:
    """Let the engines start and sleep before the learner starts. Both at once would take the same memory.

    Raises like `RolloutPool.wait_ready` and `sleep`.
    """
    if cfg.rollout.sleep:
        pool.wait_ready()
        pool.sleep()


def learner(cfg: Config, pool: RolloutPool, clock: Clock) -> None:
    """Free the engines' GPU memory for the learner, as phase `sleep`. Raises like `RolloutPool.sleep`."""
    if cfg.rollout.sleep:
        with clock.phase("sleep"):
            pool.sleep()


def engines(cfg: Config, pool: RolloutPool, clock: Clock) -> None:
    """Give the engines their GPU memory back, as phase `wake`. Raises like `RolloutPool.wake`."""
    if cfg.rollout.sleep:
        with clock.phase("wake"):
            pool.wake()
