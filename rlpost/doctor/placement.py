"""Whether a run's actors can be placed on nodes: engines and learner ranks, each on one node as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlpost.cluster.capacity import amount
from rlpost.cluster.placement import Plan, sum_of
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import Config, Task
from rlpost.doctor.finding import Finding, error, ok, warning

Bundle = tuple[list[str], Needs]
"""Processes that share a node, such as all learner ranks with ray.placement=spread, and what they claim together."""


def bundles(cfg: Config) -> list[Bundle]:
    """What a run reserves; see rlpost.cluster.placement."""
    plan = Plan.of(cfg, with_learner=cfg.task is not Task.eval)
    needs, places = plan.layout()
    names = ["learner rank"] * len(plan.ranks) + ["rollout worker"] * len(plan.workers)
    found: list[Bundle] = [([], each) for each in needs]
    for name, place in zip(names, places, strict=True):
        if place is None:  # it claims nothing
            found.append(([name], Needs(0, 0)))
        else:
            found[place][0].append(name)
    return found


def placed(wanted: Sequence[Bundle], nodes: Mapping[str, Needs]) -> tuple[dict[str, list[str]], list[str]]:
    """Processes by node, and those without a place: largest bundles first, each on the node that it fills most.

    Another order might place more, so what is left over is a doubt and no proof.
    """
    free, found, left = dict(nodes), {node: list[str]() for node in nodes}, list[str]()
    for names, claim in sorted(wanted, key=lambda each: (-each[1].gpus, -each[1].cpus)):
        able = [node for node, has in free.items() if has.hold(claim)]
        if not able:
            left += names
            continue
        node = min(able, key=lambda each: (free[each].gpus, free[each].cpus))
        free[node] = free[node].less(claim)
        found[node] += names
    return found, left


def placement_finding(cfg: Config, nodes: Mapping[str, Needs], free: Mapping[str, Needs]) -> Finding:
    """Whether the run fits the nodes (all resources), and whether it fits now (those that are free)."""
    wanted = bundles(cfg)
    if alone := sorted(
        {
            name
            for names, claim in wanted
            if not any(has.hold(claim) for has in nodes.values())
            for name in names
        }
    ):
        reason = f"no node is large enough for a {' or a '.join(alone)}"
        return error("placement", f"{reason}: {_listed(nodes)}", _REMEDY)
    total, has = sum_of([claim for _, claim in wanted]), sum_of([*nodes.values()])
    if not has.hold(total):
        text = f"the run claims {amount(total)}, and all nodes together have {amount(has)}"
        return error("placement", text, _REMEDY)
    found, left = placed(wanted, nodes)
    if left:
        text = f"{', '.join(left)} found no place beside the others: {_listed(nodes)}"
        return warning("placement", text, _REMEDY)
    if placed(wanted, free)[1]:
        text = f"the run fits the nodes, but not what is free now: {_listed(free)}"
        return warning(
            "placement", text, "wait for what runs there, or ask for less (rollout.cpus, learner.cpus)"
        )
    return ok("placement", "; ".join(f"{node}: {_counted(names)}" for node, names in found.items() if names))


_REMEDY = (
    "ask for less (rollout.workers, rollout.cpus, rollout.gpus, learner.workers, learner.cpus, learner.gpus), or join"
    " a larger cluster with ray.address="
)


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _listed(nodes: Mapping[str, Needs]) -> str:
    return "; ".join(f"{node}: {amount(has)}" for node, has in nodes.items())
