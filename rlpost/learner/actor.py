"""The Ray actor around a learner rank. It imports heavy libraries in `start` only, so that the driver needs none."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlpost.cluster.memory import Memory, of_this_process
from rlpost.cluster.node_tasks import naming_this_node
from rlpost.config.schema import Config
from rlpost.learner.checkpoint_folder import CheckpointFolder, Sign
from rlpost.learner.named_adapters import NamedAdapters
from rlpost.learner.rendezvous import Rendezvous, bind_collectives, bound_socket, port_of
from rlpost.record.shares import Share, share_of
from rlpost.types import Example

if TYPE_CHECKING:
    from rlpost.learner.learner import Learner


class LearnerActor:
    """One rank in its own process."""

    learner: Learner
    held: socket.socket
    checkpoint: CheckpointFolder

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
        adapters: NamedAdapters,
        rendezvous: Rendezvous,
    ) -> None:
        from rlpost.learner.learner import Learner

        if rendezvous.rank == 0:
            rendezvous = replace(rendezvous, listener=self.held.detach())
        self.held.close()
        if rendezvous.own_address is not None:
            bind_collectives(rendezvous.own_address)
        with naming_this_node():
            self.learner = Learner(cfg, Path(model_folder), canary_ids, rendezvous, examples, adapters)
        self.learner.end_turn()

    def memory(self) -> Memory:
        """The host memory of this rank."""
        return of_this_process()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the learner. Only rank 0 returns the answer, because the others' answers are not used."""
        answer = getattr(self.learner, method)(*args)
        self.learner.end_turn()
        return answer if self.learner.rendezvous.rank == 0 else None

    # A checkpoint: find, then save, read ... or append ..., load; then leave. See rlpost.learner.checkpoint_folder.

    def find(self, folder: Path, sign: Sign) -> bool:
        """Whether this rank sees the run's `folder`; it then works there, else in a folder of its node."""
        self.checkpoint = CheckpointFolder(folder, sign)
        return self.checkpoint.is_the_runs

    def save(self) -> Share:
        """Write the learner's state; return what this rank has written."""
        with self.checkpoint.naming_this_node():
            self.learner.save(self.checkpoint.path)
            return share_of(self.checkpoint.path, self.learner.rendezvous.rank)

    def read(self, name: str, offset: int) -> bytes:
        return self.checkpoint.read(name, offset)

    def append(self, name: str, data: bytes) -> None:
        self.checkpoint.append(name, data)

    def load(self) -> None:
        with self.checkpoint.naming_this_node():
            self.learner.load(self.checkpoint.path)
        self.learner.end_turn()

    def leave(self) -> None:
        self.checkpoint.close()
