"""Light tasks on chosen nodes of the connected Ray, and this node's name."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlpost.cluster.capacity import Node, label
from rlpost.errors import ModelError


@dataclass(frozen=True)
class Failure:
    """Why a node gave no answer."""

    reason: str


def this_node() -> str:
    """The node of this process, for messages: its name and the address under which Ray knows it."""
    return label(socket.gethostname(), ray.util.get_node_ip_address())


@contextmanager
def naming_this_node() -> Iterator[None]:
    """Put this node's name before a ModelError: the driver has found the model, so it is the node that lacks it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"on {this_node()}: {error}") from error


def only(node: Node) -> NodeAffinitySchedulingStrategy:
    """Ray's strategy for a task or an actor that must be on that node."""
    return NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)


def on(node: Node, function: Callable[..., Any]) -> Any:
    """`function` as a task on that node, to be called with `.remote`. It claims nothing, and is not tried again."""
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=only(node))(function)


def ask_each(
    nodes: Sequence[Node], function: Callable[..., Any], *args: Any, timeout_s: float
) -> dict[Node, Any | Failure]:
    """The value of `function(*args)` on every node, or a Failure of those without an answer within `timeout_s`.

    The task claims no CPU, so it runs beside everything else. Raises nothing: one node may not hide another.
    """
    shared = [ray.put(arg) for arg in args]
    asked = {on(node, function).remote(*shared): node for node in nodes}
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
