"""`rollout.sleep`: engines and learner take turns on a GPU.

    engines play (learner: weights, gradients, optimizer states) ─▶ engines sleep ─▶ the learner works
          ▲                                                                              │ it releases freed memory
          └── swap, if the policy goes live ◀── engines wake, with the same weights ◀────┘

The pool wakes by itself before any use (rlpost/rollout/pool.py), so an iteration wakes it here for the measured time
alone. Other work of the learner inside a phase (a held-out loss, a KL to the start) calls `pool.sleep`, and counts as
that phase.
"""

from __future__ import annotations

from rlpost.tasks.session import Session


def learner(session: Session) -> None:
    """Free the engines' GPU memory for the learner, as phase `sleep`. Raises like `RolloutPool.sleep`."""
    if session.cfg.rollout.sleep:
        with session.clock.phase("sleep"):
            session.pool.sleep()


def engines(session: Session) -> None:
    """Give the engines their GPU memory back, as phase `wake`. Raises like `RolloutPool.wake`."""
    if session.cfg.rollout.sleep:
        with session.clock.phase("wake"):
            session.pool.wake()
