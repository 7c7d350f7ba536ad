"""Which bundles a run asks for, who gets which, and the wait for them. Ray's part is a stand-in here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.cluster import capacity, placement
from rlpost.cluster.capacity import Node
from rlpost.cluster.placement import Placement, Plan, placed, refuse_large_bundle
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import Config, PlacementStrategy, RayConfig
from rlpost.errors import ClusterError

NEEDS = st.builds(Needs, st.integers(0, 4), st.integers(0, 2))
PLANS = st.builds(
    Plan,
    st.lists(NEEDS, max_size=5).map(tuple),
    st.lists(NEEDS, max_size=5).map(tuple),
    st.sampled_from(PlacementStrategy),
)


@given(PLANS)
def test_every_process_that_needs_something_has_its_resources_in_a_bundle(plan: Plan) -> None:
    bundles, places = plan.layout()
    processes = [*plan.ranks, *plan.workers]
    assert len(places) == len(processes)
    assert Needs(0, 0) not in bundles
    together = [
        [p for p, place in zip(processes, places, strict=True) if place == k] for k in range(len(bundles))
    ]
    for bundle, held in zip(bundles, together, strict=True):
        assert bundle == Needs(sum(p.cpus for p in held), sum(p.gpus for p in held))
    assert all(p == Needs(0, 0) for p, place in zip(processes, places, strict=True) if place is None)


@given(PLANS)
def test_only_ranks_that_stay_on_one_node_share_a_bundle(plan: Plan) -> None:
    _, places = plan.layout()
    ranks, workers = places[: len(plan.ranks)], [k for k in places[len(plan.ranks) :] if k is not None]
    assert len(set(workers)) == len(workers)
    assert not set(workers) & set(ranks)
    if plan.strategy is PlacementStrategy.spread:
        assert len(set(ranks)) <= 1
    else:
        held = [k for k in ranks if k is not None]
        assert len(set(held)) == len(held)


def test_a_tensor_parallel_engine_has_all_its_ranks_in_one_bundle() -> None:
    cfg = Config()
    cfg.rollout.workers, cfg.rollout.tensor_parallel = 2, 4
    cfg.rollout.cpus, cfg.rollout.gpus, cfg.learner.workers = 0.5, 1.0, 3
    plan = Plan.of(cfg)
    assert plan.workers == (Needs(2.0, 4.0),) * 2
    assert plan.ranks == (Needs(1.0, 0.0),) * 3
    assert plan.needs == Needs.of(cfg)
    assert plan.needs.processes == Needs.of(cfg).processes == 11
    assert Plan.of(cfg, with_learner=False).needs == Needs.of_engines(cfg)


def test_a_plan_serves_the_same_learner_or_none() -> None:
    one, two = Needs(1, 0), Needs(2, 0)
    plan = Plan((one, one), (one,))
    assert plan.serves(plan)
    assert plan.serves(Plan((one, one), ()))
    assert not plan.serves(Plan((one, one), (two,)))
    assert not plan.serves(Plan((one, one), (one, one)))
    assert not plan.serves(Plan((one,), (one,)))
    assert not Plan((one, one), ()).serves(plan)


def node(name: str, total: float, free: float = 0.0, gpus: float = 0.0) -> Node:
    return Node(name, name, f"10.0.0.{ord(name[0]) - 96}", Needs(total, gpus), Needs(free, gpus))


class FakeRay:
    """Placement groups that are ready after `ready_after` seconds of a clock that only waiting moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nodes: list[Node], ready_after: float) -> None:
        self.now, self.ready_after = 0.0, ready_after
        self.asked, self.removed, self.told = list[tuple[Any, str]](), list[Any](), list[str]()
        monkeypatch.setattr(capacity, "nodes", lambda: nodes)
        monkeypatch.setattr(placement, "placement_group", self._create)
        monkeypatch.setattr(placement, "remove_placement_group", self.removed.append)
        monkeypatch.setattr(placement.time, "monotonic", lambda: self.now)
        where = {k: nodes[k % len(nodes)].id for k in range(9)} if nodes else {}
        monkeypatch.setattr(placement, "placement_group_table", lambda group: {"bundles_to_node_id": where})

    def _create(self, bundles: list[dict[str, float]], strategy: str) -> FakeRay:
        self.asked.append((bundles, strategy))
        return self

    def wait(self, timeout_seconds: int) -> bool:
        if self.ready_after <= self.now:
            return True
        self.now += timeout_seconds
        return self.ready_after <= self.now


Ray = Callable[..., FakeRay]


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return lambda *nodes, ready_after=0.0: FakeRay(monkeypatch, [*nodes], ready_after)


TWO_AND_TWO = Plan((Needs(1, 0, 1),) * 2, (Needs(1, 0, 1),) * 2)
JOINED = RayConfig(address="auto", wait_s=90)


def test_a_run_with_room_waits_silently_and_gives_everything_back(fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 2, 2), node("b", 2, 2))
    with placed(TWO_AND_TWO, JOINED, ray.told.append) as place:
        assert ray.asked == [([{"CPU": 1}] * 4, "PACK")]
        options = [place.rank(0), place.rank(1), place.worker(0), place.worker(1)]
        assert [each["scheduling_strategy"].placement_group_bundle_index for each in options] == [0, 1, 2, 3]
        assert [each["num_cpus"] for each in options] == [1] * 4
        assert (place.node_of_rank(0), place.node_of_worker(1)) == ("node a, 10.0.0.1", "node b, 10.0.0.2")
        assert ray.removed == []
    assert ray.removed == [ray]
    assert ray.told == []


def test_spread_asks_for_one_bundle_of_all_ranks(fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 2, 2), node("b", 2, 2))
    plan = Plan(TWO_AND_TWO.workers, TWO_AND_TWO.ranks, PlacementStrategy.spread)
    with placed(plan, JOINED, ray.told.append) as place:
        assert ray.asked == [([{"CPU": 2}, {"CPU": 1}, {"CPU": 1}], "SPREAD")]
        strategies = [place.rank(i)["scheduling_strategy"] for i in (0, 1)]
        assert [each.placement_group_bundle_index for each in strategies] == [0, 0]


def test_a_run_without_room_says_what_is_missing_and_goes_on_when_there_is(fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 4, 2), node("b", 4, 0), ready_after=70)
    with placed(TWO_AND_TWO, JOINED, ray.told.append):
        pass
    assert len(ray.told) == 3, "at once, and then every 30 s"
    assert "needs 4 CPUs (2 rollout workers x 1 CPUs, 2 learner ranks x 1 CPUs)" in ray.told[0]
    assert "free now: 2 of 8 CPUs; it waits at most 89 s more (ray.wait_s)" in ray.told[0]


@pytest.mark.parametrize(("address", "setting"), [("auto", "ray.wait_s=90"), (None, "ray.timeout_s=120")])
def test_the_wait_ends_with_needs_totals_and_what_is_free_by_node(
    address: str | None, setting: str, fake_ray: Ray
) -> None:
    ray = fake_ray(node("a", 4, 2), node("b", 4, 0, gpus=1), ready_after=1000)
    config = RayConfig(address=address, wait_s=90)
    with (
        pytest.raises(ClusterError) as late,
        placed(TWO_AND_TWO, config, ray.told.append),
    ):
        pytest.fail("the body must not run")
    told = str(late.value)
    assert f"within {setting}. It needs 4 CPUs (2 rollout" in told
    assert "\n  node a, 10.0.0.1: 2 of 4 CPUs free" in told
    assert "\n  node b, 10.0.0.2: 0 of 4 CPUs, 1 of 1 GPUs free" in told
    assert "\n  remedy: wait longer" in told
    assert ray.removed == [ray]
    assert 90 <= ray.now <= 121


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_group_is_removed_however_the_run_ends(error: type[BaseException], fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 4, 4))
    with pytest.raises(error), placed(TWO_AND_TWO, JOINED, ray.told.append):
        raise error
    assert ray.removed == [ray]


def test_what_needs_nothing_is_placed_without_a_group(fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 4, 4))
    with placed(Plan((Needs(0, 0),), ()), JOINED, ray.told.append) as place:
        assert place.worker(0) == {"num_cpus": 0, "num_gpus": 0}
    assert ray.asked == []


def test_a_worker_that_is_added_has_a_group_of_its_own_which_goes_with_the_run(fake_ray: Ray) -> None:
    ray = fake_ray(node("b", 9, 9))
    groups = iter(["given up", "added", "starting"])
    with placed(TWO_AND_TWO, JOINED, ray.told.append) as place, pytest.MonkeyPatch.context() as patch:
        asked: list[Any] = []
        patch.setattr(
            placement, "placement_group", lambda bundles, strategy: asked.append(bundles) or next(groups)
        )
        given_up, added, _ = [place.reserve_worker() for _ in range(3)]
        assert asked == [[{"CPU": 1}]] * 3
        place.release(given_up)
        assert ray.removed == ["given up"]
        added.locate()
        assert added.node_of_worker(0) == "node b, 10.0.0.2"
        place.add(added)
        assert place.worker(2)["scheduling_strategy"].placement_group == "added"
        assert place.node_of_worker(2) == "node b, 10.0.0.2"
        assert place.worker(1)["scheduling_strategy"].placement_group is ray
    assert ray.removed == ["given up", "added", "starting", ray]


def test_an_added_worker_without_needs_has_no_group(fake_ray: Ray) -> None:
    ray = fake_ray(node("a", 4, 4))
    with placed(Plan((Needs(0, 0),), ()), JOINED, ray.told.append) as place:
        place.add(place.reserve_worker())
        assert place.worker(1) == {"num_cpus": 0, "num_gpus": 0}
    assert (ray.asked, ray.removed) == ([], [])


def test_room_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "nodes", lambda: [node("a", 8, 3), node("b", 8, 1.5), node("c", 8, 0)])
    assert [capacity.room_for(Needs(2, 0), most) for most in (0, 1, 5)] == [0, 1, 1]
    assert capacity.room_for(Needs(1.5, 0), 5) == 3
    assert capacity.room_for(Needs(1, 1), 5) == 0
    assert capacity.room_for(Needs(0, 0), 5) == 5


def test_a_cluster_that_adds_nodes_may_have_none_yet(fake_ray: Ray) -> None:
    plan, growing = Plan((Needs(8, 0),), ()), RayConfig(address="auto", autoscaling=True, wait_s=90)
    ray = fake_ray(ready_after=40)
    with placed(plan, growing, ray.told.append):
        assert "free now: 0 of 0 CPUs" in ray.told[0]
    ray = fake_ray(ready_after=1000)
    with pytest.raises(ClusterError, match="There is no node"), placed(plan, growing, ray.told.append):
        pytest.fail("the body must not run")
    ray = fake_ray()
    with (
        pytest.raises(ClusterError, match="One node must have 8 CPUs"),
        placed(plan, JOINED, ray.told.append),
    ):
        pytest.fail("the body must not run")
    assert ray.asked == []


def test_a_bundle_that_no_node_holds_is_refused_with_its_owner() -> None:
    nodes = [node("a", 4), node("b", 3)]
    refuse_large_bundle(Plan((Needs(4, 0),), (Needs(3, 0),)), nodes)
    with pytest.raises(
        ClusterError, match=r"5 CPUs for a rollout worker[^!]*\n  node a, 10.0.0.1: 4 CPUs\n  node b"
    ):
        refuse_large_bundle(Plan((Needs(5, 0),), (Needs(3, 0),)), nodes)
    with pytest.raises(ClusterError, match=r"1 CPUs and 1 GPUs for a learner rank[^!]*remedy: ask for less"):
        refuse_large_bundle(Plan((Needs(4, 0),), (Needs(1, 1),)), nodes)
    both = (Needs(2, 0),) * 3
    refuse_large_bundle(Plan((), both), nodes)
    with pytest.raises(
        ClusterError, match=r"6 CPUs for all 3 learner ranks[^!]*remedy: set ray\.placement=pack"
    ):
        refuse_large_bundle(Plan((), both, PlacementStrategy.spread), nodes)


def test_without_a_group_ray_places_each_actor_by_itself() -> None:
    place = Placement(TWO_AND_TWO)
    place.locate()
    for options in itertools.chain(map(place.rank, (0, 1)), map(place.worker, (0, 1))):
        assert options == {"num_cpus": 1, "num_gpus": 0}
    assert (place.node_of_rank(0), place.node_of_worker(0)) == (None, None)
