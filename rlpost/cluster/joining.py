"""What is asked before a cluster is joined: whether it answers, and whether this machine is one of its nodes.

A driver works through the raylet of its own node: its sockets, its object store. If there is none, Ray waits a minute
before it fails. If Ray finds the processes of another node, as in containers that share theirs, it ends this process in
native code. So the cluster is asked first.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # not in its stub
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from rlpost.cluster.addresses import host_and_port
from rlpost.errors import ClusterError

TOKEN_HINT = (
    "if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or keep it in ~/.ray/auth_token"
)


def require_listener(address: str, timeout_s: float) -> None:
    """Raise ClusterError if nothing listens at `host:port`."""
    host, port = host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        raise ClusterError(
            f"No Ray cluster answers at ray.address={address} ({error.strerror or error}). Start one there with "
            f"`ray start --head --port={port}`, or leave ray.address out to start Ray on this machine."
        ) from error


def own_node(address: str, timeout_s: float) -> str:
    """The address by which the cluster at `host:port` knows this machine.

    Raises ClusterError if no living node is on this machine, or if the cluster does not tell its nodes.
    """
    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=timeout_s).values()
    except Exception as error:  # Ray raises RpcError, AuthenticationError, RuntimeError and others here
        raise ClusterError(
            f"The Ray cluster at ray.address={address} does not tell its nodes ({TOKEN_HINT}): {error}"
        ) from error
    alive = [node for node in nodes if node.state == GcsNodeInfo.ALIVE]
    here = nodes_here(alive, own_addresses())
    if not here:
        known = ", ".join(sorted(node.node_manager_address for node in alive)) or "none"
        raise ClusterError(
            f"This machine is not a node of the Ray cluster at ray.address={address}, whose nodes are: {known}.\n"
            f"  remedy: make it one with `ray start --address={address} --num-cpus=0`, which lends no CPUs, or run"
            " rlpost on a node of the cluster, or submit it there with `ray job submit -- rlpost ... ray.address=auto`"
        )
    return here[0]


def nodes_here(alive: Iterable[Any], addresses: Collection[str]) -> list[str]:
    """The addresses of those nodes whose address is among `addresses` and whose raylet's socket is on this disk.

    A container that shares its host's network has the address, but not the socket.
    """
    return [
        node.node_manager_address
        for node in alive
        if node.node_manager_address in addresses and Path(node.raylet_socket_name).exists()
    ]


def own_addresses() -> set[str]:
    """The IP addresses of this machine's network interfaces."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        each.address.partition("%")[0]  # without the scope of a link-local address
        for interface in psutil.net_if_addrs().values()
        for each in interface
        if each.family in families
    }
