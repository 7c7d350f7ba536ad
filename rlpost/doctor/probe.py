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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlpost.cluster import ray_cluster
from rlpost.config.schema import RayConfig
from rlpost.doctor import facts
from rlpost.errors import RlpostError
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
    free = available_resources_per_node()
    nodes = [_node(told, free.get(told["NodeID"], {})) for told in ray.nodes() if told["Alive"]]
    pending = {node["id"]: _on(node["id"], _facts).remote() for node in nodes}
    answers = _answers(pending, timeout_s)
    for node in nodes:
        node["facts"] = answers.get(node["id"])
        node["clock"] = _clock(node["id"], timeout_s) if node["facts"] is not None else None
    able = [node["id"] for node in nodes if node["facts"] is not None]
    pairs = [pair for other in able[1:] for pair in ((able[0], other), (other, able[0]))]
    return {"nodes": nodes, "links": [_link(source, target, timeout_s) for source, target in pairs]}


def _node(told: Mapping[str, Any], free: Mapping[str, float]) -> dict[str, Any]:
    has = told["Resources"]
    return {
        "id": told["NodeID"],
        "name": f"{told['NodeManagerHostname']} ({told['NodeManagerAddress']})",
        "cpus": has.get("CPU", 0.0),
        "gpus": has.get("GPU", 0.0),
        "free_cpus": free.get("CPU", 0.0),
        "free_gpus": free.get("GPU", 0.0),
    }


def _on(node: str, function: Any) -> Any:
    """`function` as a task on that node, which claims nothing and is not tried again."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(function)


def _answers(pending: Mapping[str, ray.ObjectRef], timeout_s: float) -> dict[str, Any]:
    """What came in time, without failing; a node that is not there did not answer."""
    done, _ = ray.wait(list(pending.values()), num_returns=len(pending), timeout=timeout_s)
    found = {}
    for node, ref in pending.items():
        if ref in done:
            try:
                found[node] = ray.get(ref, timeout=timeout_s)
            except Exception:  # a node may fail in any way; the doctor says which did not answer
                continue
    return found


def _facts() -> dict[str, Any]:
    return asdict(facts.collect())


def _now() -> float:
    return time.time()


def _clock(node: str, timeout_s: float) -> dict[str, float] | None:
    """How far the node's clock is ahead, in seconds, and how far that may be wrong: half of the way there and back."""
    best: dict[str, float] | None = None
    for _ in range(CLOCK_TRIES):
        before = time.time()
        there = _answers({node: _on(node, _now).remote()}, timeout_s).get(node)
        after = time.time()
        if there is None:
            return best
        doubt = (after - before) / 2
        if best is None or doubt < best["doubt_s"]:
            best = {"ahead_s": there - (before + after) / 2, "doubt_s": doubt}
    return best


def _link(source: str, target: str, timeout_s: float) -> dict[str, Any]:
    """The rate of Ray's object store from `source` to `target`, and whether a port of `source` can be reached."""
    found: dict[str, Any] = {"source": source, "target": target, "mib_per_s": None, "port_fault": None}
    sample = _on(source, _sample).remote()
    ray.wait([sample], timeout=timeout_s, fetch_local=False)
    seconds = _answers({target: _on(target, _seconds_to_get).remote([sample], timeout_s)}, timeout_s).get(
        target
    )
    if seconds is not None:
        found["mib_per_s"] = SAMPLE / 2**20 / max(seconds, 1e-6)
    place = NodeAffinitySchedulingStrategy(source, soft=False)
    door = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=place)(_Door).remote()
    at = _answers({source: door.open.remote()}, timeout_s).get(source)
    if at is not None:
        reached = _answers({target: _on(target, _reach).remote(*at)}, timeout_s)
        found["port_fault"] = reached.get(target, f"no answer within {timeout_s:g} s")
    ray.kill(door)
    return found


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
