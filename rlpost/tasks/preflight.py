"""Checks the nodes of a joined cluster before anything heavy starts: the same software, the model and the data.

    beside the driver   facts of this machine ─┐
    one task a node     facts of the node ─────┴─▶ what differs or is missing, of all nodes at once ─▶ ClusterError

A private Ray has one node, the driver's own, so there is nothing to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpost.cluster import capacity
from rlpost.cluster.capacity import Node
from rlpost.cluster.data_files import data_files, travelling
from rlpost.cluster.node_tasks import Failure, ask_each
from rlpost.cluster.placement import Plan
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Config, Task
from rlpost.errors import ClusterError
from rlpost.learner.named_adapters import teacher_named
from rlpost.record.versions import SAME_VERSIONS, differences
from rlpost.tasks.node_facts import Facts, Wanted, facts
from rlpost.validate.environment import TRAINING
from rlpost.weights import models, teachers

# Free bytes that any node must have in its temporary folder, for sockets, logs and adapters.
SPARE = 256 * 2**20
STATE = 12  # bytes of a checkpoint for each trained number: itself and AdamW's two moments, in float32


@dataclass(frozen=True)
class Problem:
    reason: str
    remedy: str


def check(cfg: Config, model_folder: Path) -> None:
    """Raise ClusterError that names every node that may get work and what it lacks. It takes seconds."""
    needs = wanted(cfg, model_folder)
    here = facts(needs)
    answers = ask_each(fitting(cfg, capacity.nodes()), facts, needs, timeout_s=cfg.ray.timeout_s)
    refuse({node: problems(needs, here, there) for node, there in answers.items()}, cfg.ray.address)


def wanted(cfg: Config, model_folder: Path) -> Wanted:
    """What the run needs on a node. Adapters, the user's modules and rlpost travel, so they are not among it."""
    named = {"model": (models.name_elsewhere(cfg.model, model_folder), str(model_folder))}
    teacher = teacher_named(cfg)
    if teacher is not None and not teachers.is_adapter(teacher):
        folder = models.resolve(teacher)
        named["algo.teacher"] = (models.name_elsewhere(teacher, folder), str(folder))
    whole = cfg.task in TRAINING and TABLE[cfg.lora.kind].whole
    share = STATE * models.parameters(model_folder) if whole else 0
    return Wanted(named, tuple(map(str, data_files(cfg))), SPARE + share)


def fitting(cfg: Config, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that are large enough for an actor of the run. A head that declares no CPUs gets no work."""
    plan = Plan.of(cfg, with_learner=cfg.task is not Task.eval)
    claims = {*plan.workers, *plan.ranks}
    return [node for node in nodes if any(node.total.hold(claim) for claim in claims)]


def problems(needs: Wanted, here: Facts, there: Facts | Failure) -> list[Problem]:
    """What keeps a node from taking part. `here`: the driver's facts."""
    if isinstance(there, Failure):
        return [Problem(there.reason, "look at that node (ray status), or take it out of the cluster")]
    found = [Problem(reason, SAME_VERSIONS) for reason in differences(here.versions, there.versions)]
    if there.code != here.code:
        found.append(
            Problem("rlpost's code is not the driver's", "remove the rlpost that is installed on that node")
        )
    for name, reason in there.missing.items():
        found.append(Problem(f"{name}: {reason}", _remedy(needs, name)))
    for name in sorted(there.found.keys() & here.found.keys()):
        if there.found[name] != here.found[name]:
            found.append(Problem(f"{name} is not the same there as here", _remedy(needs, name)))
    if there.free < needs.temporary:
        free, least = there.free / 2**20, needs.temporary / 2**20
        reason = f"its temporary folder has {free:.0f} MiB free, and needs {least:.0f}"
        found.append(Problem(reason, "free space there"))
    return found


def refuse(found: Mapping[Node, Sequence[Problem]], address: str | None) -> None:
    """Raise ClusterError if a node has a problem: a line for each such node, and the remedies."""
    bad = {node: each for node, each in found.items() if each}
    if not bad:
        return
    reasons = [f"  reason: {node.label}: {'; '.join(p.reason for p in each)}" for node, each in bad.items()]
    remedies = dict.fromkeys(p.remedy for each in bad.values() for p in each)
    head = f"ray.address={address}: {len(bad)} of {len(found)} nodes lack what the run needs"
    raise ClusterError("\n".join([head, *reasons, f"  remedy: {'; '.join(remedies)}"]))


def _remedy(needs: Wanted, name: str) -> str:
    if name in needs.models:
        return f"copy the folder of {name}= to the same path on every node, or give a hub id that each node can fetch"
    size = (
        "files as large as these do not travel"
        if not travelling([*map(Path, needs.data)])
        else "remove other copies"
    )
    return f"copy {name} to the same path on every node ({size})"
