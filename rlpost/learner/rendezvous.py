"""The address at which the learner's ranks meet, and the network interface through which they then talk.

gloo binds to what the node's own name resolves to. By Debian's default /etc/hosts that is a loopback address, which no
other node reaches. So ranks on several nodes bind to the address by which Ray knows their node.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from rlpost.errors import LearnerError

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


@dataclass(frozen=True)
class Rendezvous:
    """The place of one of `world_size` ranks; rank 0 listens on `host` and `port`."""

    host: str
    port: int
    rank: int
    world_size: int
    # Rank 0, in its own process: the descriptor of `bound_socket`, which the rendezvous takes over.
    listener: int | None = None
    # The address of this rank's node, if the ranks are on several nodes.
    own_address: str | None = None


def rendezvous_of(addresses: Sequence[tuple[str, int]]) -> list[Rendezvous]:
    """The places of all ranks, given each rank's (node's address, port)."""
    host, port = addresses[0]
    several = len({own for own, _ in addresses}) > 1
    return [
        Rendezvous(host, port, rank, len(addresses), own_address=own if several else None)
        for rank, (own, _) in enumerate(addresses)
    ]


def bind_collectives(address: str) -> None:
    """Have gloo and NCCL use the interface that has `address`, unless the node's environment names another.

    To be called before the process group is made. Raises LearnerError if no interface has the address.
    """
    if not {GLOO_INTERFACE, NCCL_INTERFACE} - os.environ.keys():
        return
    interface = interface_with(address)
    if interface is None:
        raise LearnerError(
            f"No network interface of {socket.gethostname()} has the address {address}, by which Ray knows this node.\n"
            f"  remedy: start Ray there with --node-ip-address=, or with {GLOO_INTERFACE} and {NCCL_INTERFACE} set to"
            " the interface through which the other nodes reach it"
        )
    os.environ.setdefault(GLOO_INTERFACE, interface)
    os.environ.setdefault(
        NCCL_INTERFACE, f"={interface}"
    )  # with "=" NCCL takes no other whose name begins so


def interface_with(address: str) -> str | None:
    """The name of the network interface that has an IP address; None if there is none."""
    for name, held in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in held):
            return str(name)
    return None


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
