"""The nodes of the connected cluster, as messages name them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node  # has no public name; Ray's own libraries use it

MOST_LOST = 4  # lost nodes that a message names; a cluster that grows and shrinks remembers many


def here(_actor: object = None) -> str:
    """Name and address of the node of this process. Also to be sent to an actor: `actor.__ray_call__.remote(here)`."""
    return f"node {socket.gethostname()}, {ray.util.get_node_ip_address()}"


def resources() -> str:
    """What each living node has free, of how much, and which nodes Ray has lost."""
    free = available_resources_per_node()
    nodes = ray.nodes()
    living = [_described(node, free.get(node["NodeID"], {})) for node in nodes if node["Alive"]]
    lost = [f"node {_named(node)} is lost" for node in nodes if not node["Alive"]]
    more = [f"{len(lost) - MOST_LOST} more are lost"] if len(lost) > MOST_LOST else []
    return "; ".join([*living, *lost[-MOST_LOST:], *more])


def _described(node: Mapping[str, Any], free: Mapping[str, float]) -> str:
    """For example `3.5 of 8 CPUs, 0 of 1 GPUs on node b, 10.0.0.2`."""
    total = node["Resources"]
    shares = (
        f"{free.get(kind, 0.0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in total
    )
    return f"{', '.join(shares) or 'no CPUs'} on node {_named(node)}"


def _named(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}, {node['NodeManagerAddress']}"
