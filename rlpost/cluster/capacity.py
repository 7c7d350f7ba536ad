"""What the nodes of the connected cluster have, in all and free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node

from rlpost.cluster.ray_cluster import Needs

MOST_LOST = 4  # lost nodes that a message names


@dataclass(frozen=True)
class Node:
    """A living node. Its address is the one by which Ray knows it."""

    id: str
    name: str
    address: str
    total: Needs
    free: Needs

    @property
    def label(self) -> str:
        return label(self.name, self.address)


def label(name: str, address: str) -> str:
    """A node in messages: `node a, 10.0.0.1`."""
    return f"node {address}" if name == address else f"node {name}, {address}"


def nodes() -> list[Node]:
    """All living nodes, in Ray's order."""
    free = available_resources_per_node()
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["NodeManagerAddress"],
            _needs(node["Resources"]),
            _needs(free.get(node["NodeID"], {})),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def room_for(needs: Needs, most: int) -> int:
    """How many processes with such `needs` the nodes have room for now, counted up to `most`."""
    free = [node.free for node in nodes()]
    for count in range(most):
        k = next((k for k, has in enumerate(free) if has.hold(needs)), None)
        if k is None:
            return count
        free[k] = free[k].less(needs)
    return most


def amount(needs: Needs) -> str:
    """`4 CPUs`, `2 GPUs` or `4 CPUs and 2 GPUs`."""
    parts = [f"{needs.cpus:g} CPUs"] if needs.cpus or not needs.gpus else []
    return " and ".join([*parts, f"{needs.gpus:g} GPUs"] if needs.gpus else parts)


def shares(free: Needs, total: Needs) -> str:
    """`2 of 8 CPUs`, and the GPUs if there are any."""
    gpus = f", {free.gpus:g} of {total.gpus:g} GPUs" if total.gpus else ""
    return f"{free.cpus:g} of {total.cpus:g} CPUs{gpus}"


def summary() -> str:
    """What each living node has free, and which nodes were lost: `1 of 2 CPUs on node a, 10.0.0.1; lost: node b`."""
    living = [f"{shares(node.free, node.total)} on {node.label}" for node in nodes()]
    lost = [
        f"{node['NodeManagerHostname']}, {node['NodeManagerAddress']}"
        for node in ray.nodes()
        if not node["Alive"]
    ]
    # A cluster that grows and shrinks remembers many.
    return "; ".join([*living, *(f"lost: node {each}" for each in lost[-MOST_LOST:])])


def _needs(resources: Mapping[str, float]) -> Needs:
    return Needs(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
