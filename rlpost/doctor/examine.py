"""The whole examination: this machine, the settings and their model, the precision, the memory plan, the cluster.

    words ─▶ Config ─▶ model's files ─▶ precision ─▶ memory plan ─┐
    this machine ─▶ Facts ────────────────────────────────────────┴▶ findings
    ray.address  ─▶ a process that looks at the nodes ─▶ Facts of each ─▶ findings, placement

A fault of one step is a finding, and the steps that do not need it go on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlpost.cluster import precision
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import Config, Dtype, RayConfig
from rlpost.doctor import facts as facts_of
from rlpost.doctor.cluster import ClusterFacts, look_at
from rlpost.doctor.facts import Facts
from rlpost.doctor.finding import Finding, error, ok, warning
from rlpost.doctor.fit import gpu_findings, memory_finding, plan_of_node
from rlpost.doctor.machine import machine_findings
from rlpost.doctor.nodes import node_findings
from rlpost.doctor.placement import bundles, placed, placement_finding
from rlpost.errors import RlpostError
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import Plan
from rlpost.memory.plan import PLANNED, Saving, memory_plan, savings
from rlpost.validate.checks import validate
from rlpost.validate.memory import teacher_shape
from rlpost.validate.model import check_model
from rlpost.weights import models


@dataclass
class Examination:
    """What was found. `plan` is None without a configuration, or without its model's files."""

    facts: Facts
    findings: list[Finding] = field(default_factory=list)
    plan: Plan | None = None
    saves: list[Saving] = field(default_factory=list)


def examine(cfg: Config | None, ray: RayConfig, named: Collection[str] = ()) -> Examination:
    """Examine this machine, `cfg` on it, and the cluster at `ray.address`. `named`: the settings that were typed."""
    seen = Examination(facts_of.collect())
    seen.findings += machine_findings(seen.facts)
    if cfg is not None:
        _settings(cfg, named, seen)
        _model(cfg, seen)
    if ray.address is not None:
        _cluster(cfg, ray, seen)
    elif cfg is not None:
        _alone(cfg, seen)
    return seen


def _settings(cfg: Config, named: Collection[str], seen: Examination) -> None:
    try:
        validate(cfg, named)
    except RlpostError as refused:
        seen.findings += _refusals("settings", refused)
    else:
        seen.findings.append(ok("settings", "accepted"))


def _model(cfg: Config, seen: Examination) -> None:
    """The model, the precision, and the plan of the run's processes."""
    if cfg.task not in PLANNED or cfg.eval.endpoint is not None:
        return
    try:
        folder = local_folder(cfg.model)
        if folder is None:
            remedy = f"start a run, or rlpost model={cfg.model} task=dry_run once, which fetches it"
            seen.findings.append(warning("model", f"{cfg.model} is not on this machine yet", remedy))
            return
        check_model(cfg, folder)
        seen.findings.append(ok("model", f"{cfg.model}: {models.parameters(folder) / 1e6:,.1f}M parameters"))
        cfg = _precision(cfg, folder, seen)
        shape, teacher = ModelShape.read(folder), teacher_shape(cfg)
        seen.plan = memory_plan(cfg, shape, teacher)
        seen.saves = savings(cfg, shape, teacher)
    except RlpostError as refused:
        seen.findings += _refusals("model", refused)


def local_folder(name: str) -> Path | None:
    """The model's folder if its files are here; None if a run would download or convert them first.

    Raises ModelError if the name is none, or its folder lacks files.
    """
    if name == models.SMOLLM2 and not (models.cache_folder() / models.SMOLLM2_CACHE).is_dir():
        return None
    if not models.is_hub_id(name):
        return models.resolve(name)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub's client when it is imported
    try:
        return models.resolve(name)
    except RlpostError:
        return None


def _precision(cfg: Config, folder: Path, seen: Examination) -> Config:
    """`cfg` with its precision chosen on this machine. On a cluster a run measures where a rank will compute."""
    on_gpu = cfg.learner.gpus > 0 and cfg.rollout.gpus > 0
    choice = precision.choose(cfg.dtype, precision.Shapes.of(cfg, folder), on_gpu)
    text = f"{choice.dtype.value} ({choice.reason})"
    if choice.warning is not None:
        seen.findings.append(warning("precision", choice.warning, "leave dtype out"))
    else:
        seen.findings.append(ok("precision", text))
    assert choice.dtype is not Dtype.auto
    return replace(cfg, dtype=choice.dtype)


def _alone(cfg: Config, seen: Examination) -> None:
    """Placement and memory of a private Ray, which has this machine's cores and GPUs."""
    name = seen.facts.host
    room = {name: Needs(seen.facts.cores, len(seen.facts.gpus))}
    if cfg.task in PLANNED:
        seen.findings.append(placement_finding(cfg, room, room))
    if seen.plan is not None:
        seen.findings.append(memory_finding(seen.plan, seen.facts, seen.saves))
        seen.findings += gpu_findings(seen.plan, cfg, seen.facts.gpus)


def _cluster(cfg: Config | None, ray: RayConfig, seen: Examination) -> None:
    try:
        found = look_at(ray)
    except RlpostError as fault:
        remedy = "see `ray status` on a node; start this command there; or leave ray.address out, to run here"
        seen.findings.append(error("cluster", str(fault), remedy))
        return
    seen.findings.append(ok("cluster", f"{len(found.nodes)} nodes at ray.address={ray.address}"))
    seen.findings += node_findings(found, seen.facts.versions)
    if cfg is not None and cfg.task in PLANNED:
        seen.findings += _on_nodes(cfg, found, seen)


def _on_nodes(cfg: Config, found: ClusterFacts, seen: Examination) -> Iterator[Finding]:
    """Placement, and the memory of each node under one way to place the actors."""
    has = {node.name: Needs(node.cpus, node.gpus) for node in found.nodes}
    free = {node.name: Needs(node.free_cpus, node.free_gpus) for node in found.nodes}
    yield placement_finding(cfg, has, free)
    by_node, _ = placed(bundles(cfg), has)
    for node in found.nodes:
        if seen.plan is not None and node.facts is not None and by_node[node.name]:
            part = plan_of_node(seen.plan, by_node[node.name])
            yield memory_finding(part, node.facts, seen.saves, node.name)


def _refusals(what: str, refused: RlpostError) -> Iterator[Finding]:
    """A finding for every refusal in a message; see rlpost.config.keys.refusal for their form."""
    told = list[str]()
    for line in str(refused).splitlines():
        if line.startswith("  remedy: "):
            yield error(what, " ".join(told), line.removeprefix("  remedy: "))
            told = []
        else:
            told.append(line.strip())
    if told:
        yield error(what, " ".join(told), "change what the message names")
