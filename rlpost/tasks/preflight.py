"""Checks the nodes of a joined cluster before anything heavy starts: the same software, the model and the data.

    beside the driver   facts of this machine ─┐
    one task a node     facts of the node ─────┴─▶ what differs or is missing, of all nodes at once ─▶ ClusterError

A private Ray has one node, the driver's own, so there is nothing to check.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rlpost
from rlpost.cluster.data_files import data_files, sent, travelling
from rlpost.cluster.node_tasks import Failure, Node, alive, ask_each
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Config, Task
from rlpost.errors import ClusterError, RlpostError
from rlpost.learner.named_adapters import teacher_named
from rlpost.record.versions import versions
from rlpost.validate.environment import TRAINING
from rlpost.weights import models, teachers
from rlpost.weights.stored_model import fingerprint

COMPARED = ("python", "rlpost", "torch", "transformers", "vllm", "ray", "peft", "deepspeed")
SPARE = (
    256 * 2**20
)  # free bytes that any node must have in its temporary folder, for sockets, logs and adapters
STATE = 12  # bytes of a checkpoint for each trained number: itself and AdamW's two moments, in float32


@dataclass(frozen=True)
class Wanted:
    """What a run needs on a node."""

    models: Mapping[str, tuple[str, str]]  # by setting: the name for other nodes, and the driver's folder
    data: tuple[str, ...]  # absolute paths of the data files
    temporary: int  # free bytes of the temporary folder

    @classmethod
    def of(cls, cfg: Config, model_folder: Path) -> Wanted:
        named = {"model": (models.name_elsewhere(cfg.model, model_folder), str(model_folder))}
        teacher = teacher_named(cfg)
        if teacher is not None and not teachers.is_adapter(teacher):
            folder = models.resolve(teacher)
            named["algo.teacher"] = (models.name_elsewhere(teacher, folder), str(folder))
        whole = cfg.task in TRAINING and TABLE[cfg.lora.kind].whole
        share = STATE * models.parameters(model_folder) if whole else 0
        return cls(named, tuple(map(str, data_files(cfg))), SPARE + share)


@dataclass(frozen=True)
class Facts:
    """What a machine has of it."""

    versions: Mapping[str, str | None]
    code: str  # SHA-256 over rlpost's own modules
    free: int  # bytes in the temporary folder
    found: dict[str, str] = field(default_factory=dict)  # fingerprints of models and data, by setting or path
    missing: dict[str, str] = field(default_factory=dict)  # the reasons, of those that are not there


@dataclass(frozen=True)
class Problem:
    reason: str
    remedy: str


def check(cfg: Config, model_folder: Path) -> None:
    """Raise ClusterError that names every node that may get work and what it lacks. It takes seconds."""
    wanted = Wanted.of(cfg, model_folder)
    here = facts(wanted)
    answers = ask_each(fitting(cfg, alive()), facts, wanted, timeout_s=cfg.ray.timeout_s)
    refuse({node: problems(wanted, here, there) for node, there in answers.items()}, cfg.ray.address)


def fitting(cfg: Config, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that are large enough for an actor of the run. A head that declares no CPUs gets no work."""
    rollout, learner = cfg.rollout, cfg.learner
    ranks = rollout.tensor_parallel
    claims = [(ranks * rollout.cpus, ranks * rollout.gpus)]
    if cfg.task is not Task.eval:
        claims.append((learner.cpus, learner.gpus))
    return [node for node in nodes if any(node.cpus >= cpus and node.gpus >= gpus for cpus, gpus in claims)]


def facts(wanted: Wanted) -> Facts:
    """The facts of the machine that this runs on."""
    told = versions()
    named = {name: told[name] for name in COMPARED}
    here = Facts(named, _code(), shutil.disk_usage(tempfile.gettempdir()).free)
    for setting, (name, folder) in wanted.models.items():
        if models.is_fetched(name) and not Path(folder).is_dir():
            continue  # a worker that starts here finds it in this node's cache, or fetches it
        try:
            here.found[setting] = fingerprint(models.on_this_node(name, Path(folder)))
        except RlpostError as error:
            here.missing[setting] = str(error).splitlines()[0]
    for path in map(Path, wanted.data):
        place = path if path.exists() else sent(path)
        if place is None:
            here.missing[str(path)] = "there is no such file or folder"
        else:
            here.found[str(path)] = _bytes_of(place)
    return here


def problems(wanted: Wanted, here: Facts, there: Facts | Failure) -> list[Problem]:
    """What keeps a node from taking part. `here`: the driver's facts."""
    if isinstance(there, Failure):
        return [Problem(there.reason, "look at that node (ray status), or take it out of the cluster")]
    found = []
    for name, version in here.versions.items():
        if _public(name, there.versions[name]) != _public(name, version):
            reason = f"{name} is {there.versions[name] or 'not installed'} there and {version or 'not installed'} here"
            found.append(Problem(reason, "install the same versions on every node (requirements/)"))
    if there.code != here.code:
        found.append(
            Problem("rlpost's code is not the driver's", "remove the rlpost that is installed on that node")
        )
    for name, reason in there.missing.items():
        found.append(Problem(f"{name}: {reason}", _remedy(wanted, name)))
    for name in sorted(there.found.keys() & here.found.keys()):
        if there.found[name] != here.found[name]:
            found.append(Problem(f"{name} is not the same there as here", _remedy(wanted, name)))
    if there.free < wanted.temporary:
        reason = f"its temporary folder has {there.free / 2**20:.0f} MiB free of {wanted.temporary / 2**20:.0f} MiB"
        found.append(Problem(reason, "free space there"))
    return found


def refuse(found: Mapping[Node, Sequence[Problem]], address: str | None) -> None:
    """Raise ClusterError if a node has a problem: a line for each such node, and the remedies."""
    bad = {node: each for node, each in found.items() if each}
    if not bad:
        return
    reasons = [f"  reason: {node}: {'; '.join(p.reason for p in each)}" for node, each in bad.items()]
    remedies = dict.fromkeys(p.remedy for each in bad.values() for p in each)
    head = f"ray.address={address}: {len(bad)} of {len(found)} nodes lack what the run needs"
    raise ClusterError("\n".join([head, *reasons, f"  remedy: {'; '.join(remedies)}"]))


def _remedy(wanted: Wanted, name: str) -> str:
    if name in wanted.models:
        return f"copy the folder of {name}= to the same path on every node, or give a hub id that each node can fetch"
    size = "files as large as these do not travel" if not travelling([Path(name)]) else "remove other copies"
    return f"copy {name} to the same path on every node ({size})"


def _public(name: str, version: str | None) -> str | None:
    """The part of a version that must agree: nodes may differ in builds (+cpu), and in Python's last number."""
    if version is None:
        return None
    return version.rpartition(".")[0] if name == "python" else re.split(r"[+ ]", version)[0]


def _code() -> str:
    """SHA-256 over the modules of rlpost that this process would import."""
    digest, root = hashlib.sha256(), Path(rlpost.__file__).parent
    # In a checkout rlpost/envs is a link, which Ray's copy holds as a folder.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for path in sorted(Path(folder) / file for file in files if file.endswith(".py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"|" + path.read_bytes())
    return digest.hexdigest()


def _bytes_of(path: Path) -> str:
    """SHA-256 over a file, or over the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            with each.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{each.relative_to(path)}|{whole}|".encode())
    return digest.hexdigest()
