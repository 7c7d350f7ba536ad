"""`rollout.lag=k`: the policy of k updates ago plays training's episodes, the current one all evaluations.

an update     ─▶ add: the new version; the newest k + 1 are held ─▶ the oldest goes live (k = 0: the new one itself)
an evaluation ─▶ the newest goes live, plays, and the oldest comes back (training_state.current_live)
a checkpoint  ─▶ save: the versions before the newest, which the learner's own state gives
a resumed run ─▶ load them; then the learner's policy is added as after an update
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from rlpost.record.shares import Share, entry, names_in
from rlpost.tasks import stored_policy
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter

FOLDER = "lagging"  # in a checkpoint, with a folder a version; not there if nothing lags


class RecentPolicies:
    """The newest `lag` + 1 policies, each with the canary that proves its swap."""

    def __init__(self, lag: int) -> None:
        self._held: deque[tuple[Adapter, Canary]] = deque(maxlen=lag + 1)

    def add(self, adapter: Adapter, canary: Canary) -> None:
        """Add the policy after an update. With more than `lag` + 1, the oldest is let go."""
        self._held.append((adapter, canary))

    @property
    def oldest(self) -> tuple[Adapter, Canary]:
        """The policy that plays training's episodes: that of `lag` updates ago, or the start if there were fewer."""
        return self._held[0]

    @property
    def newest(self) -> tuple[Adapter, Canary]:
        """The current policy."""
        return self._held[-1]

    def save(self, checkpoint: Path) -> Share:
        """Write all but the newest into the folder of a checkpoint; return what was written."""
        for adapter, canary in list(self._held)[:-1]:
            folder = checkpoint / FOLDER / f"version-{adapter.version:06d}"
            folder.mkdir(parents=True)
            stored_policy.write(folder, adapter, canary)
        names = [name for name in names_in(checkpoint) if name.startswith(f"{FOLDER}/")]
        return {name: entry(checkpoint / name) for name in names}

    def load(self, checkpoint: Path) -> None:
        """Hold what `save` wrote, and nothing else. Raises AdapterError or CheckpointError if a file is damaged."""
        found = [stored_policy.read(folder) for folder in (checkpoint / FOLDER).glob("version-*")]
        self._held.clear()
        self._held.extend(sorted(found, key=lambda policy: policy[0].version))
