"""Looks at every node of a joined cluster, with one light task a node, and writes what it found as JSON.

    python -m rlpost.doctor.probe ADDRESS SECONDS FILE

It is a process of its own (`rlpost.doctor.cluster` starts it), since a driver that cannot reach a cluster may hang in
Ray, or be aborted in native code. All waits end within SECONDS of their beginning.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from rlpost.cluster import actor_calls, capacity, ray_cluster
from rlpost.cluster.capacity import Node
from rlpost.cluster.node_tasks import Failure, ask_each, on, only
from rlpost.config.schema import RayConfig
from rlpost.doctor import facts
from rlpost.errors import ClusterError, RlpostError
from rlpost.record.files import write_atomic

SAMPLE = 8 * 2**20  # bytes that are sent from node to node
CLOCK_TRIES = 3
CONNECT_S = 5.0


def main(argv: Sequence[str]) -> int:
    """Look at the cluster and write the file; 1, with the reason in the file, if it cannot be joined."""
    address, seconds, target = argv
    try:
        with ray_cluster.connect(
            RayConfig(address=address, timeout_s=float(seconds)), ray_cluster.Needs(0, 0)
        ):
            found = look(float(seconds))
    except RlpostError as error:
        write_atomic(Path(target), json.dumps({"fault": str(error)}).encode())
        return 1
    write_atomic(Path(target), json.dumps(found).encode())
    return 0


def look(timeout_s: float) -> dict[str, Any]:
    """Nodes with their facts and clocks, and the links between the first node and each other one."""
    nodes = capacity.nodes()
    answers = ask_each(nodes, _facts, timeout_s=timeout_s)
    able = [node for node in nodes if not isinstance(answers[node], Failure)]
    pairs = [pair for other in able[1:] for pair in ((able[0], other), (other, able[0]))]
    return {
        "nodes": [
            _told(node)
            | {
                "facts": answers[node] if node in able else None,
                "clock": _clock(node, timeout_s) if node in able else None,
            }
            for node in nodes
        ],
        "links": [_link(source, target, timeout_s) for source, target in pairs],
    }


def _told(node: Node) -> dict[str, Any]:
    """What Ray knows of the node."""
    return {
        "id": node.id,
        "name": node.label,
        "cpus": node.total.cpus,
        "gpus": node.total.gpus,
        "free_cpus": node.free.cpus,
        "free_gpus": node.free.gpus,
    }


def _facts() -> dict[str, Any]:
    return asdict(facts.collect())


def _now() -> float:
    return time.time()


def _clock(node: Node, timeout_s: float) -> dict[str, float] | None:
    """How far the node's clock is ahead, in seconds, and how far that may be wrong: half of the way there and back."""
    best: dict[str, float] | None = None
    for _ in range(CLOCK_TRIES):
        before = time.time()
        [there] = ask_each([node], _now, timeout_s=timeout_s).values()
        after = time.time()
        if isinstance(there, Failure):
            return best
        doubt = (after - before) / 2
        if best is None or doubt < best["doubt_s"]:
            best = {"ahead_s": there - (before + after) / 2, "doubt_s": doubt}
    return best


def _link(source: Node, target: Node, timeout_s: float) -> dict[str, Any]:
    """The rate of Ray's object store from `source` to `target`, and whether a port of `source` can be reached."""
    sample = on(source, _sample).remote()
    ray.wait([sample], timeout=timeout_s, fetch_local=False)
    [seconds] = ask_each([target], _seconds_to_get, [sample], timeout_s, timeout_s=timeout_s).values()
    rate = None if isinstance(seconds, Failure) else SAMPLE / 2**20 / max(seconds, 1e-6)
    return {
        "source": source.id,
        "target": target.id,
        "mib_per_s": rate,
        "port_fault": _port_fault(source, target, timeout_s),
    }


def _port_fault(source: Node, target: Node, timeout_s: float) -> str | None:
    """Why a port of `source` cannot be reached from `target`: empty if it can; None if none was opened in time."""
    door = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=only(source))(_Door).remote()
    try:
        host, port = actor_calls.get(door.open.remote(), timeout_s, f"a port of {source.label}")
        [reached] = ask_each([target], _reach, host, port, timeout_s=timeout_s).values()
        return reached.reason if isinstance(reached, Failure) else reached
    except ClusterError:
        return None
    finally:
        ray.kill(door)


def _sample() -> bytes:
    return bytes(SAMPLE)


def _seconds_to_get(sample: list[ray.ObjectRef], timeout_s: float) -> float:
    started = time.perf_counter()
    ray.get(sample[0], timeout=timeout_s)
    return time.perf_counter() - started


class _Door:
    """An actor that listens at a port of its node, as rank 0 of a learner does."""

    def open(self) -> tuple[str, int]:
        self.held = socket.create_server(("", 0))
        return ray.util.get_node_ip_address(), int(self.held.getsockname()[1])


def _reach(host: str, port: int) -> str:
    """Why the port cannot be reached; empty if it can."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as fault:
        return f"{host}:{port}: {fault}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
