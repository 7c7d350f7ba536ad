"""`rollout.policy=start`: the policy that RL starts from plays all of training's episodes.

start of RL   ─▶ keep: start_policy/ in the run's folder: the adapter, and the canary that proves its swap
an evaluation ─▶ the current policy goes live, plays, and the start comes back (training_state.current_live)
a resumed run ─▶ go_live: the engines get the start, the learner its checkpoint
the end       ─▶ the current policy goes live, for the last evaluation and as the run's adapter/
"""

from __future__ import annotations

from rlpost.record.files import publish_folder
from rlpost.record.run_dir import RunDir
from rlpost.tasks import stored_policy
from rlpost.tasks.session import Session
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter


def keep(session: Session, version: int) -> None:
    """Write the learner's policy, which the engines serve as `version`. Raises OutputError if it cannot be written."""
    adapter, canary = session.learner.export(version)
    publish_folder(session.run_dir.start_policy, lambda folder: stored_policy.write(folder, adapter, canary))


def go_live(session: Session) -> None:
    """Swap what `keep` wrote into every engine, proven like any swap.

    Raises AdapterError or CheckpointError if the files are missing or damaged, SwapError if an engine refuses it.
    """
    session.pool.swap(*kept(session.run_dir))


def kept(run_dir: RunDir) -> tuple[Adapter, Canary]:
    """What `keep` wrote. Raises AdapterError or CheckpointError if the files are missing or damaged."""
    return stored_policy.read(run_dir.start_policy)
