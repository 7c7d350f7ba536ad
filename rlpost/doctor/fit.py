"""Judges a memory plan against the machine, a cluster's nodes, or a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlpost.config.schema import Config
from rlpost.doctor.facts import Facts, Gpu
from rlpost.doctor.finding import Finding, error, ok, warning
from rlpost.memory.parts import Plan
from rlpost.memory.plan import Saving
from rlpost.memory.shared_gpu import engines_beside_a_rank, least
from rlpost.validate.memory import gib, remedy, shortage

ON_EVERY_NODE = "Ray's daemons"


def memory_finding(plan: Plan, facts: Facts, found: Sequence[Saving], node: str = "") -> Finding:
    """Whether the plan's processes fit the machine of `facts`. `found`: the settings that save memory."""
    what, where = "memory plan", node or "this machine"
    if reason := shortage(plan, facts.memory, where):
        return error(what, reason, remedy(list(found)), node)
    text = f"up to {gib(plan.size())}, of {gib(facts.memory)}"
    if plan.size() > facts.memory:
        return warning(
            what, f"{text}: full micro-batches and a full KV cache do not fit", remedy(list(found)), node
        )
    if plan.size() > facts.memory_free:
        return warning(what, f"{text}, and {gib(facts.memory_free)} are free now", "end other programs", node)
    return ok(what, text, node)


def plan_of_node(plan: Plan, actors: Sequence[str]) -> Plan:
    """The part of a plan that a node has: the processes named in `actors`, each as often as it is there."""
    counts = {ON_EVERY_NODE: 1, **{name: actors.count(name) for name in actors}}
    return Plan(
        tuple(replace(each, count=counts[each.name]) for each in plan.processes if each.name in counts)
    )


def gpu_findings(plan: Plan, cfg: Config, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Whether an engine's and a rank's certain parts fit the largest GPU. What CUDA itself takes is not counted."""
    largest = max((gpu.memory for gpu in gpus), default=0)
    share = cfg.rollout.gpu_memory_utilization
    for process in plan.processes:
        least = process.device_size(certain_only=True)
        if least == 0:
            continue
        engine = process.name == "rollout worker"
        room = int(largest * share) if engine else largest
        text = f"a {process.name} takes at least {gib(least)} of a GPU, and has {gib(room)}"
        if least > room:
            help_ = (
                "raise rollout.gpu_memory_utilization" if engine else "give lora.kind=lora or lora.base=nf4"
            )
            yield error("GPU memory", text, f"{help_}, or take a smaller model")
        else:
            yield ok("GPU memory", text)
    if {"rollout worker", "learner rank"} <= {process.name for process in plan.processes}:
        yield from _shared_gpu(plan, cfg, largest)


def _shared_gpu(plan: Plan, cfg: Config, gpu: int) -> Iterator[Finding]:
    """Whether the engines and the rank that share a GPU fit it together."""
    count = engines_beside_a_rank(cfg)
    if not count or not gpu:
        return
    taken, turns = least(plan, cfg, gpu), "in turns" if cfg.rollout.sleep else "at once"
    text = (
        f"{count} x rollout worker and a learner rank share one: at least {gib(taken)} {turns}, of {gib(gpu)}"
    )
    if taken <= gpu:
        yield ok("GPU memory", text)
        return
    help_ = "lower rollout.gpu_memory_utilization, or take a smaller model"
    yield error("GPU memory", text, help_ if cfg.rollout.sleep else f"give rollout.sleep=true, or {help_}")
