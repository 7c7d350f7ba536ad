"""One Ray placement group a run: all of its processes get their resources at once, or it waits and holds none.

    Plan ─▶ placed: a bundle a process, reserved together ─▶ actors, each in its bundle ─▶ the group is removed
                    until there is room it says what is missing, at most ray.wait_s

A bundle outlives its actor: the replacement of a dead rollout worker, and the ranks of the next run on kept engines,
take the same one. Ray removes the group when its driver ends, however that ends.

`ray.placement=pack` asks for as few nodes as possible (Ray's PACK). With `spread`, bundles go on as many nodes as
possible (Ray's SPREAD). A group has one strategy, so there the ranks share one bundle, which keeps them on one node.

A group keeps its bundles for life. A rollout worker that is added later (rollout.max_workers) has a group of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.cluster import capacity
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import Config, LearnerConfig, PlacementStrategy, RayConfig
from rlpost.errors import ClusterError

Say = Callable[[str], None]  # prints a line for the user
TELL_EVERY_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What each process of a run needs on the node where it runs, and how the nodes are chosen."""

    workers: tuple[
        Needs, ...
    ]  # one a rollout worker, whose actor holds all ranks of a tensor-parallel engine
    ranks: tuple[Needs, ...]  # one a learner rank
    strategy: PlacementStrategy = PlacementStrategy.pack

    @classmethod
    def of(cls, cfg: Config, with_learner: bool = True) -> Plan:
        rollout, learner = cfg.rollout, cfg.learner
        tensor_parallel = rollout.tensor_parallel
        worker = Needs(tensor_parallel * rollout.cpus, tensor_parallel * rollout.gpus, tensor_parallel)
        ranks = (_of_a_rank(learner),) * learner.workers if with_learner else ()
        return cls((worker,) * rollout.workers, ranks, cfg.ray.placement)

    @classmethod
    def of_a_rank(cls, cfg: Config) -> Plan:
        """A plan for one learner rank alone."""
        return cls((), (_of_a_rank(cfg.learner),))

    @property
    def needs(self) -> Needs:
        """What all processes need together."""
        return sum_of((*self.ranks, *self.workers))

    def serves(self, wanted: Plan) -> bool:
        """Whether the bundles of this plan are those of `wanted`, which may be without ranks."""
        return self.workers == wanted.workers and wanted.ranks in ((), self.ranks)

    def layout(self) -> tuple[list[Needs], list[int | None]]:
        """The bundles, and each process's index in them: ranks, then workers. A process without needs has none."""
        spread = self.strategy is PlacementStrategy.spread
        sharing = [self.ranks] if spread else [(rank,) for rank in self.ranks]
        bundles, places = list[Needs](), list[int | None]()
        for together in (*sharing, *((worker,) for worker in self.workers)):
            needs = sum_of(together)
            empty = needs == Needs(0, 0)  # Ray refuses an empty bundle
            places += [None if empty else len(bundles)] * len(together)
            bundles += [] if empty else [needs]
        return bundles, places

    def __str__(self) -> str:
        parts = [
            f"{len(each)} {name} x {capacity.amount(each[0])}"
            for name, each in (("rollout workers", self.workers), ("learner ranks", self.ranks))
            if each
        ]
        return f"{capacity.amount(self.needs)} ({', '.join(parts)})"


class Placement:
    """The bundles of a run. Without a group, Ray places each actor by itself, as it comes."""

    def __init__(self, plan: Plan, group: PlacementGroup | None = None, joined: bool = False) -> None:
        self.plan, self._group, self._joined = plan, group, joined
        _, self._places = plan.layout()
        self._nodes: dict[int, str] = {}
        self._reserved: list[Placement] = []  # of workers that are to be added, and of those that were
        self._added: list[Placement] = []  # of workers that were added, in the order of their numbers

    def rank(self, i: int) -> dict[str, Any]:
        """Ray's options for the actor of learner rank `i`."""
        return self._options(self.plan.ranks[i], self._places[i])

    def worker(self, i: int) -> dict[str, Any]:
        """Ray's options for the actor of rollout worker `i`."""
        if (added := i - len(self.plan.workers)) >= 0:
            return self._added[added].worker(0)
        return self._options(self.plan.workers[i], self._places[len(self.plan.ranks) + i])

    def node_of_rank(self, i: int) -> str | None:
        """The name and address of the rank's node when `locate` last asked; None if unknown, as on a private Ray."""
        return self._node(self._places[i])

    def node_of_worker(self, i: int) -> str | None:
        """The same for rollout worker `i`."""
        if (added := i - len(self.plan.workers)) >= 0:
            return self._added[added].node_of_worker(0)
        return self._node(self._places[len(self.plan.ranks) + i])

    def locate(self) -> None:
        """Ask a joined cluster where the bundles are. A bundle moves if its node is lost."""
        for added in self._added:
            added.locate()
        if self._group is None or not self._joined:
            return
        labels = {node.id: node.label for node in capacity.nodes()}
        found = placement_group_table(self._group).get("bundles_to_node_id", {})
        self._nodes = {index: labels[node] for index, node in found.items() if node in labels}

    def reserve_worker(self) -> Placement:
        """Ask for the bundle of another rollout worker, its worker 0, without waiting for it."""
        plan = Plan(self.plan.workers[:1], ())
        bundles, _ = plan.layout()
        group = placement_group([_resources(bundles[0])], strategy="PACK") if bundles else None
        self._reserved.append(Placement(plan, group, self._joined))
        return self._reserved[-1]

    def add(self, reserved: Placement) -> None:
        """The worker of `reserved` joins the others: from now on it is the one with the next number."""
        self._added.append(reserved)

    def release(self, reserved: Placement) -> None:
        """Give back the bundle of a worker that did not join the others."""
        self._reserved.remove(reserved)
        reserved.close()

    def close(self) -> None:
        """Give back all bundles."""
        for reserved in self._reserved:
            reserved.close()
        if self._group is not None:
            with contextlib.suppress(Exception):  # Ray removes it with this driver in any case
                remove_placement_group(self._group)

    def _node(self, bundle: int | None) -> str | None:
        return None if bundle is None else self._nodes.get(bundle)

    def _options(self, needs: Needs, bundle: int | None) -> dict[str, Any]:
        options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        if self._group is None or bundle is None:
            return options
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return options | {"scheduling_strategy": where}


@contextlib.contextmanager
def placed(plan: Plan, config: RayConfig, say: Say) -> Iterator[Placement]:
    """Reserve the bundles of a run for the duration of the body.

    On a private Ray nobody else holds anything, so they are there at once. On a joined cluster other runs may hold
    them, or nodes may still be on their way: then it tells `say` what is missing, every TELL_EVERY_S seconds.

    Raises ClusterError if no node of a cluster that does not grow can hold one of the bundles, or if not all of them
    are reserved within ray.wait_s (on a private Ray: ray.timeout_s).
    """
    bundles, _ = plan.layout()
    if not bundles:
        yield Placement(plan)
        return
    if not config.autoscaling:
        refuse_large_bundle(plan, capacity.nodes())
    strategy = "SPREAD" if plan.strategy is PlacementStrategy.spread else "PACK"
    group = placement_group([_resources(bundle) for bundle in bundles], strategy=strategy)
    placement = Placement(plan, group, joined=config.address is not None)
    try:
        _wait(group, plan, config, say)
        placement.locate()
        yield placement
    finally:
        placement.close()


def refuse_large_bundle(plan: Plan, nodes: Sequence[capacity.Node]) -> None:
    """Raise ClusterError if a bundle is larger than each of the `nodes`."""
    for bundle in plan.layout()[0]:
        if not any(node.total.hold(bundle) for node in nodes):
            held = "".join(f"\n  {node.label}: {capacity.amount(node.total)}" for node in nodes)
            raise ClusterError(
                f"One node must have {capacity.amount(bundle)} for {_holder(plan, bundle)}, and none has.{held}\n"
                f"  remedy: {_remedy(plan, bundle)}, or add a larger node; if the cluster adds nodes on demand, set"
                " ray.autoscaling=true"
            )


def _holder(plan: Plan, bundle: Needs) -> str:
    if bundle in plan.workers:
        return "a rollout worker (rollout.tensor_parallel x rollout.cpus, rollout.gpus)"
    if bundle in plan.ranks:
        return "a learner rank (learner.cpus, learner.gpus)"
    return f"all {len(plan.ranks)} learner ranks, which ray.placement=spread keeps together"


def _remedy(plan: Plan, bundle: Needs) -> str:
    alone = bundle in (*plan.workers, *plan.ranks)
    return "ask for less" if alone else "set ray.placement=pack"


def _wait(group: PlacementGroup, plan: Plan, config: RayConfig, say: Say) -> None:
    joined = config.address is not None
    setting, limit_s = ("ray.wait_s", config.wait_s) if joined else ("ray.timeout_s", config.timeout_s)
    deadline, next_told = time.monotonic() + limit_s, 0.0
    while not group.wait(timeout_seconds=1):
        now = time.monotonic()
        if now >= deadline:
            raise ClusterError(_too_late(plan, f"{setting}={limit_s:g}", config.autoscaling))
        if now >= next_told:
            nodes = capacity.nodes()
            free, total = sum_of([node.free for node in nodes]), sum_of([node.total for node in nodes])
            say(
                f"waiting for room on the cluster: the run needs {plan}; free now: {capacity.shares(free, total)};"
                f" it waits at most {deadline - now:.0f} s more ({setting})"
            )
            next_told = now + TELL_EVERY_S


def _too_late(plan: Plan, limit: str, autoscaling: bool) -> str:
    nodes = "".join(
        f"\n  {node.label}: {capacity.shares(node.free, node.total)} free" for node in capacity.nodes()
    )
    grows = ", or look why the autoscaler added no node (`ray status`)" if autoscaling else ""
    return (
        f"There was no room for the whole run within {limit}. It needs {plan} at once.{nodes or ' There is no node.'}\n"
        "  remedy: wait longer, or ask for less (rollout.workers, rollout.cpus, rollout.gpus, learner.workers,"
        f" learner.cpus, learner.gpus), or end what holds the rest{grows}"
    )


def _resources(needs: Needs) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", needs.cpus), ("GPU", needs.gpus)) if amount > 0}


def sum_of(all_needs: Sequence[Needs]) -> Needs:
    """What all claim together."""
    return Needs(
        cpus=sum(each.cpus for each in all_needs),
        gpus=sum(each.gpus for each in all_needs),
        processes=sum(each.processes for each in all_needs),
    )


def _of_a_rank(learner: LearnerConfig) -> Needs:
    return Needs(learner.cpus, learner.gpus, processes=1)
