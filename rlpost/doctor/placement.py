"""Whether a run's actors can be placed on nodes: engines and learner ranks, each on one node as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlpost.config.schema import Config, Task
from rlpost.doctor.finding import Finding, error, ok, warning


@dataclass(frozen=True)
class Room:
    """Ray CPUs and GPUs, of a node or wanted by an actor."""

    cpus: float
    gpus: float

    def holds(self, wanted: Room) -> bool:
        return self.cpus >= wanted.cpus - 1e-9 and self.gpus >= wanted.gpus - 1e-9

    def less(self, wanted: Room) -> Room:
        return Room(self.cpus - wanted.cpus, self.gpus - wanted.gpus)


def actors(cfg: Config) -> list[tuple[str, Room]]:
    """The actors of a run by name, each with what it claims on one node."""
    rollout, learner, ranks = cfg.rollout, cfg.learner, cfg.rollout.tensor_parallel
    engines = [("rollout worker", Room(ranks * rollout.cpus, ranks * rollout.gpus))] * rollout.workers
    trains = cfg.task not in (Task.eval, Task.dry_run)
    return engines + [("learner rank", Room(learner.cpus, learner.gpus))] * (learner.workers if trains else 0)


def placed(
    wanted: Sequence[tuple[str, Room]], nodes: Mapping[str, Room]
) -> tuple[dict[str, list[str]], list[str]]:
    """Actors by node, and those without a place: largest first, each on the node that it fills most.

    Another order might place more, so what is left over is a doubt and no proof.
    """
    free, found, left = dict(nodes), {node: list[str]() for node in nodes}, list[str]()
    for name, room in sorted(wanted, key=lambda each: (-each[1].gpus, -each[1].cpus)):
        able = [node for node, has in free.items() if has.holds(room)]
        if not able:
            left.append(name)
            continue
        node = min(able, key=lambda each: (free[each].gpus, free[each].cpus))
        free[node] = free[node].less(room)
        found[node].append(name)
    return found, left


def placement_finding(cfg: Config, nodes: Mapping[str, Room], free: Mapping[str, Room]) -> Finding:
    """Whether the run fits the nodes (all resources), and whether it fits now (those that are free)."""
    wanted = actors(cfg)
    if alone := sorted({name for name, room in wanted if not any(has.holds(room) for has in nodes.values())}):
        reason = f"no node is large enough for a {' or a '.join(alone)}"
        return error("placement", f"{reason}: {_listed(nodes)}", _REMEDY)
    total = Room(sum(room.cpus for _, room in wanted), sum(room.gpus for _, room in wanted))
    has = Room(sum(room.cpus for room in nodes.values()), sum(room.gpus for room in nodes.values()))
    if not has.holds(total):
        text = f"the run claims {_room(total)}, and all nodes together have {_room(has)}"
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


def _listed(nodes: Mapping[str, Room]) -> str:
    return "; ".join(f"{node}: {_room(room)}" for node, room in nodes.items())


def _room(room: Room) -> str:
    return f"{room.cpus:g} CPUs, {room.gpus:g} GPUs"
