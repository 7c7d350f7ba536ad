"""The nodes of the connected Ray: their names, and one light task on each of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlpost.errors import ModelError


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray knows it."""

    id: str
    host: str
    address: str
    cpus: float  # that it declares, in use or not
    gpus: float

    def __str__(self) -> str:
        return f"node {self.host} ({self.address})"


@dataclass(frozen=True)
class Failure:
    """Why a node gave no answer."""

    reason: str


def alive() -> list[Node]:
    """The nodes of the cluster that are alive, by address."""
    found = [each for each in ray.nodes() if each["Alive"]]
    return sorted((_node(each) for each in found), key=lambda node: (node.address, node.id))


def this_node() -> str:
    """The node of this process, for messages: its name and the address under which Ray knows it."""
    return f"node {socket.gethostname()} ({ray.util.get_node_ip_address()})"


@contextmanager
def naming_this_node() -> Iterator[None]:
    """Put this node's name before a ModelError: the driver has found the model, so it is the node that lacks it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"on {this_node()}: {error}") from error


def ask_each(
    nodes: Sequence[Node], function: Callable[..., Any], *args: Any, timeout_s: float
) -> dict[Node, Any | Failure]:
    """The value of `function(*args)` on every node, or a Failure of those without an answer within `timeout_s`.

    The task claims no CPU, so it runs beside everything else. Raises nothing: one node may not hide another.
    """
    shared = [ray.put(arg) for arg in args]
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        asked[ray.remote(**options)(function).remote(*shared)] = node
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    answered = set(done)
    silent = Failure(f"it did not answer within {timeout_s:g} s")
    answers = {node: _value(ref, timeout_s) if ref in answered else silent for ref, node in asked.items()}
    for ref in asked.keys() - answered:
        ray.cancel(ref, force=True)
    return answers


def _value(ref: ray.ObjectRef, timeout_s: float) -> Any | Failure:
    try:
        return ray.get(ref, timeout=timeout_s)
    except Exception as error:  # the function's own, or any of Ray's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Failure(lines[-1] if lines else type(error).__name__)


def _node(told: dict[str, Any]) -> Node:
    has = told.get("Resources", {})
    return Node(
        told["NodeID"],
        told["NodeManagerHostname"],
        told["NodeManagerAddress"],
        has.get("CPU", 0.0),
        has.get("GPU", 0.0),
    )
