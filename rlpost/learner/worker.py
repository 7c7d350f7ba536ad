"""The thin Ray actor around a learner rank. Heavy imports wait for `start`, so that the driver needs none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlpost.config import Config
from rlpost.learner.rendezvous import Rendezvous, free_port

if TYPE_CHECKING:
    from rlpost.learner.rank import Learner


class LearnerWorker:
    """A rank in a process of its own."""

    learner: Learner

    def address(self) -> tuple[str, int, int]:
        """This node's address, a port that is free on it, and the process id."""
        return ray.util.get_node_ip_address(), free_port(), os.getpid()

    def start(self, cfg: Config, model_folder: str, canary_ids: tuple[int, ...], place: Rendezvous) -> None:
        from rlpost.learner.rank import Learner

        self.learner = Learner(cfg, Path(model_folder), canary_ids, place)

    def call(self, method: str, *args: Any) -> Any:
        """Run a method of the learner. Only rank 0's answer is used, so the others send none."""
        answer = getattr(self.learner, method)(*args)
        return answer if self.learner.place.rank == 0 else None
