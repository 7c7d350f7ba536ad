"""The Ray actor around a learner rank. It imports heavy libraries in `start` only, so that the driver needs none."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlpost.cluster.memory import Memory, of_this_process
from rlpost.config.schema import Config
from rlpost.learner.rendezvous import Rendezvous, bound_socket, port_of
from rlpost.types import Example

if TYPE_CHECKING:
    from rlpost.learner.learner import Learner


class LearnerActor:
    """One rank in its own process."""

    learner: Learner
    held: socket.socket

    def address(self) -> tuple[str, int]:
        """This node's address and one of its ports, which stays reserved until `start`."""
        self.held = bound_socket()
        return ray.util.get_node_ip_address(), port_of(self.held)

    def start(
        self,
        cfg: Config,
        model_folder: str,
        canary_ids: tuple[int, ...],
        examples: Sequence[Example] | None,
        rendezvous: Rendezvous,
    ) -> None:
        from rlpost.learner.learner import Learner

        if rendezvous.rank == 0:
            rendezvous = replace(rendezvous, listener=self.held.detach())
        self.held.close()
        self.learner = Learner(cfg, Path(model_folder), canary_ids, rendezvous, examples)

    def memory(self) -> Memory:
        """The host memory of this rank."""
        return of_this_process()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the learner. Only rank 0 returns the answer, because the others' answers are not used."""
        answer = getattr(self.learner, method)(*args)
        return answer if self.learner.rendezvous.rank == 0 else None
