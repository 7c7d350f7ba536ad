"""The address at which the learner's ranks meet."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Rendezvous:
    """The place of one of `world_size` ranks; rank 0 listens on `host` and `port`."""

    host: str
    port: int
    rank: int
    world_size: int
    # Rank 0, in its own process: the descriptor of `bound_socket`, which the rendezvous takes over.
    listener: int | None = None


def bound_socket() -> socket.socket:
    """A socket bound to a TCP port of this node. The port is reserved as long as the socket is open."""
    if socket.has_dualstack_ipv6():
        held = socket.socket(socket.AF_INET6)
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    else:
        held = socket.socket()
    held.bind(("", 0))
    return held


def port_of(held: socket.socket) -> int:
    return int(held.getsockname()[1])
