"""Has a process of its own look at a cluster, within a deadline, and reads what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.cluster.processes import kill_tree
from rlpost.config.schema import RayConfig
from rlpost.doctor.facts import Facts, Gpu, Space
from rlpost.errors import ClusterError

LOOK_S = 30.0  # of ray.timeout_s, at most, for each of the probe's waits
LOOKS = 4  # of these one after another: joining, facts, clocks, links
START_S = 60.0  # in which a process imports Ray, even on a busy machine
SHOWN = 3  # last lines of the probe's output in a message


@dataclass(frozen=True)
class Node:
    """A node of a cluster. `facts` is None if it did not answer."""

    id: str
    name: str  # host name and address
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    facts: Facts | None
    ahead_s: float | None  # its clock, from the driver's; None if it was not read
    doubt_s: float  # how far that may be wrong


@dataclass(frozen=True)
class Link:
    """What was measured from one node to another, by their names."""

    source: str
    target: str
    mib_per_s: float | None  # None: the sample did not arrive
    port_fault: str | None  # empty: a port of `source` was reached from `target`; None: it was not opened


@dataclass(frozen=True)
class ClusterFacts:
    nodes: Sequence[Node]
    links: Sequence[Link]


def look_at(ray: RayConfig) -> ClusterFacts:
    """Facts about the cluster at `ray.address`.

    Raises ClusterError if it cannot be joined, or if the looks together take longer than START_S and LOOKS waits.
    """
    look_s = min(ray.timeout_s, LOOK_S)
    deadline_s = START_S + LOOKS * look_s
    with tempfile.TemporaryDirectory() as scratch:
        target, log = Path(scratch) / "found.json", Path(scratch) / "log"
        words = [str(ray.address), str(look_s), str(target)]
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "rlpost.doctor.probe", *words], stdout=output, stderr=output
            )
            try:
                child.wait(deadline_s)
            except subprocess.TimeoutExpired:
                raise ClusterError(
                    f"The cluster at ray.address={ray.address} was joined or looked at for {deadline_s:g} s without an"
                    " end. Is this machine a node of it? A driver elsewhere cannot join; start it on a node."
                ) from None
            finally:
                kill_tree(child)
        if not target.is_file():
            told = " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:])
            raise ClusterError(
                f"The look at the cluster at ray.address={ray.address} ended with {child.returncode}: {told}"
            )
        return read(json.loads(target.read_text(encoding="utf-8")))


def read(found: Mapping[str, Any]) -> ClusterFacts:
    """What the probe wrote. Raises ClusterError for its fault."""
    if "fault" in found:
        raise ClusterError(str(found["fault"]))
    names = {node["id"]: node["name"] for node in found["nodes"]}
    links = [
        Link(names[link["source"]], names[link["target"]], link["mib_per_s"], link["port_fault"])
        for link in found["links"]
    ]
    return ClusterFacts([_node(node) for node in found["nodes"]], links)


def _node(told: Mapping[str, Any]) -> Node:
    clock = told["clock"] or {"ahead_s": None, "doubt_s": 0.0}
    plain = {key: told[key] for key in ("id", "name", "cpus", "gpus", "free_cpus", "free_gpus")}
    facts = None if told["facts"] is None else _facts(told["facts"])
    return Node(**plain, facts=facts, **clock)


def _facts(told: Mapping[str, Any]) -> Facts:
    spaces = {key: told[key] and Space(**told[key]) for key in ("shared", "temporary", "working")}
    gpus = tuple(Gpu(**gpu) for gpu in told["gpus"])
    return Facts(**{**told, **spaces, "gpus": gpus, "instructions": tuple(told["instructions"])})
