"""Where the learner's ranks meet."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Rendezvous:
    """One rank's place among `world` of them; rank 0 listens on `host` and `port`."""

    host: str
    port: int
    rank: int
    world: int


def free_port() -> int:
    """A TCP port that no one on this node listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
