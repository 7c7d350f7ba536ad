"""`rollout.policy=start`: the policy that RL starts from plays all of training's episodes.

start of RL   ─▶ keep: start_policy/ in the run's folder: the adapter, and the canary that proves its swap
an evaluation ─▶ the current policy goes live, plays, and the start comes back (training_state.current_live)
a resumed run ─▶ go_live: the engines get the start, the learner its checkpoint
the end       ─▶ the current policy goes live, for the last evaluation and as the run's adapter/
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rlpost.errors import CheckpointError
from rlpost.record.files import publish_folder
from rlpost.record.run_dir import RunDir
from rlpost.tasks.session import Session
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter

CANARY_FILE = "canary.json"


def keep(session: Session, version: int) -> None:
    """Write the learner's policy, which the engines serve as `version`. Raises OutputError if it cannot be written."""
    adapter, canary = session.learner.export(version)

    def fill(folder: Path) -> None:
        adapter.write(folder)
        (folder / CANARY_FILE).write_text(json.dumps(asdict(canary)), encoding="utf-8")

    publish_folder(session.run_dir.start_policy, fill)


def go_live(session: Session) -> None:
    """Swap what `keep` wrote into every engine, proven like any swap.

    Raises AdapterError or CheckpointError if the files are missing or damaged, SwapError if an engine refuses it.
    """
    session.pool.swap(*kept(session.run_dir))


def kept(run_dir: RunDir) -> tuple[Adapter, Canary]:
    """What `keep` wrote. Raises AdapterError or CheckpointError if the files are missing or damaged."""
    folder = run_dir.start_policy
    return Adapter.load(folder), _canary(folder / CANARY_FILE)


def _canary(path: Path) -> Canary:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return Canary(tuple(written["token_ids"]), tuple(written["logprobs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}\n  reason: it cannot be read ({error})\n  remedy: restore the file from a copy of the run"
        ) from error
