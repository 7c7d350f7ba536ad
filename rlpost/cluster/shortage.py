"""The refusal of a run that needs more than a whole cluster has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlpost.errors import ClusterError

if TYPE_CHECKING:
    from rlpost.cluster.ray_cluster import Needs


def refuse_shortage(needs: Needs, have: Needs, address: str | None) -> None:
    """Raise ClusterError, with figures and remedies, if the run needs more than the cluster has."""
    where = f"the cluster at {address}" if address else "this machine"
    larger = (
        "set ray.autoscaling=true if it adds nodes" if address else "join a larger cluster with ray.address="
    )
    if needs.cpus > have.cpus:
        raise ClusterError(
            f"The run asks for {needs.cpus:g} CPUs (rollout.workers x rollout.tensor_parallel x rollout.cpus +"
            f" learner.workers x learner.cpus); {where} has {have.cpus:g}. {_fewer_cpus(needs, have)} or"
            f" {larger}."
        )
    if needs.gpus > have.gpus:
        raise ClusterError(
            f"The run asks for {needs.gpus:g} GPUs (rollout.workers x rollout.tensor_parallel x rollout.gpus +"
            f" learner.workers x learner.gpus); {where} has {have.gpus:g}. Ask for less (rollout.gpus, learner.gpus),"
            f" or {larger}."
        )


def _fewer_cpus(needs: Needs, have: Needs) -> str:
    """What to do about too few CPUs. A share is rounded down, so that all processes together fit."""
    if have.cpus == 0:
        return "Start a node that has some (`ray start --address=... --num-cpus=N`),"
    share = math.floor(100 * have.cpus / needs.processes) / 100 if needs.processes else 0.0
    if share == 0:
        return "Ask for less (rollout.workers, rollout.cpus, learner.cpus),"
    return f"Ask for less, such as rollout.cpus={share:g} learner.cpus={share:g} to share cores, use fewer workers,"
