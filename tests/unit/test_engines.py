"""Who opens Ray and engines for a run, and which runs may have those of the run before; neither of them starts here."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlpost.cluster import ray_cluster
from rlpost.cluster.placement import Plan
from rlpost.cluster.ray_cluster import Cluster, Needs
from rlpost.config.schema import AdapterKind, BaseKind, Config, Dtype
from rlpost.errors import ClusterError, SwapError
from rlpost.tasks import engines
from rlpost.tasks.engines import Setup, kept
from rlpost.weights.models import TINY

PLAN = Plan(workers=(Needs(1, 0),), ranks=(Needs(1, 0),))


class FakePool:
    """Notes the runs that it begins, and fails where it is told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.closed = False
        self.error: Exception | None = None

    def begin(self, cfg: Config) -> None:
        if self.error is not None:
            raise self.error
        self.begun.append(cfg.seed)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[FakePool]:
    """The pools that were opened, in order."""
    opened: list[FakePool] = []

    @contextmanager
    def _opened(
        cfg: Config, model_folder: Path, plan: Plan, console: Console
    ) -> Iterator[tuple[Cluster, Any]]:
        pool = FakePool()
        opened.append(pool)
        try:
            yield Cluster(None), pool
        finally:
            pool.closed = True

    monkeypatch.setattr(engines, "_opened", _opened)
    monkeypatch.setattr(ray_cluster, "check_resources", lambda needs, address: None)
    return opened


def config(seed: int = 0) -> Config:
    return Config(dtype=Dtype.float32, seed=seed)


def play(cfg: Config, told: io.StringIO | None = None, plan: Plan = PLAN) -> Any:
    console = Console(file=told or io.StringIO(), width=300)
    with engines.engines(cfg, TINY, plan, Path("logs"), console) as pool:
        assert not pool.closed  # type: ignore[attr-defined]
        return pool


def test_a_run_alone_closes_what_it_opened(pools: list[FakePool]) -> None:
    play(config())
    play(config())
    assert [(pool.begun, pool.closed) for pool in pools] == [([], True), ([], True)]


def test_kept_engines_begin_every_run_but_the_first_and_close_at_the_end(pools: list[FakePool]) -> None:
    with kept():
        for seed in (1, 2, 3):
            play(config(seed))
        assert [(pool.begun, pool.closed) for pool in pools] == [([2, 3], False)]
    assert pools[0].closed
    play(config())
    assert len(pools) == 2, "after the `with` every run opens its own"


@pytest.mark.parametrize("error", [SwapError("changed"), ClusterError("worker died"), RuntimeError("odd")])
def test_engines_that_are_not_proven_to_be_back_are_replaced(pools: list[FakePool], error: Exception) -> None:
    told = io.StringIO()
    with kept():
        play(config())
        pools[0].error = error
        assert play(config(), told) is pools[1]
        assert pools[0].closed
    assert f"started anew, since the earlier ones failed: {error}" in told.getvalue()


def test_a_run_that_fails_leaves_them_open_until_the_end(pools: list[FakePool]) -> None:
    with kept():
        with (
            pytest.raises(ZeroDivisionError),
            engines.engines(config(), TINY, PLAN, Path("logs"), Console()),
        ):
            raise ZeroDivisionError
        assert [pool.closed for pool in pools] == [False]
    assert [pool.closed for pool in pools] == [True]


def test_other_engines_are_started_anew(pools: list[FakePool]) -> None:
    other = config()
    other.rollout.max_model_len += 1
    with kept():
        play(config())
        assert play(other) is pools[1]
        assert pools[0].closed
        assert play(other) is pools[1]


def test_the_next_learner_takes_the_bundles_of_the_one_before_if_they_fit(pools: list[FakePool]) -> None:
    told = io.StringIO()
    without_learner = Plan(PLAN.workers, ())
    larger = Plan(PLAN.workers, (Needs(2, 0),))
    with kept():
        play(config())
        assert play(config()) is pools[0]
        assert play(config(), plan=without_learner) is pools[0]
        assert play(config(), told, plan=larger) is pools[1]
        assert pools[0].closed
    assert "the learner of this run needs other resources" in told.getvalue()


def test_a_joined_cluster_is_not_kept(pools: list[FakePool]) -> None:
    joined = config()
    joined.ray.address = "auto"
    with kept():
        play(joined)
        play(joined)
        assert [pool.closed for pool in pools] == [True, True]


def test_each_run_is_measured_against_the_machine(
    pools: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(needs: Needs, address: str | None) -> None:
        raise ClusterError("too few CPUs")

    with kept():
        play(config())
        monkeypatch.setattr(ray_cluster, "check_resources", refuse)
        with pytest.raises(ClusterError, match="too few CPUs"):
            play(config())


# What engines are started with; everything else of a run, its seed among it, may change from run to run.
OF_ENGINES = {
    "dtype": Dtype.bfloat16,
    "lora.base": BaseKind.nf4,
    "rollout.workers": 3,
    "rollout.tensor_parallel": 2,
    "rollout.cpus": 0.25,
    "rollout.gpus": 1.0,
    "rollout.max_model_len": 77,
    "rollout.max_num_seqs": 7,
    "rollout.kv_cache_gib": 0.07,
    "rollout.gpu_memory_utilization": 0.07,
    "rollout.enforce_eager": False,
    "rollout.sleep": True,
}
OF_RUNS = {
    "seed": 5,
    "name": "other",
    "lora.rank": 3,
    "lora.kind": AdapterKind.dora,
    "algo.learning_rate": 1e-3,
    "learner.threads": 1,
    "rollout.episodes": 8,
    "rollout.temperature": 0.5,
    "rollout.max_new_tokens": 5,
    "rollout.max_canary_gap": 0.5,
    "rollout.restarts": 0,
    "rollout.min_workers": 1,
    "rollout.max_workers": 9,
    "rollout.timeout_s": 5.0,
    "rollout.env_timeout_s": 5.0,
    "rollout.template_args": {"enable_thinking": False},
}


@pytest.mark.parametrize("key", [*OF_ENGINES, *OF_RUNS])
def test_what_engines_depend_on(key: str) -> None:
    changed = config()
    group, _, name = key.rpartition(".")
    target = getattr(changed, group) if group else changed
    value = {**OF_ENGINES, **OF_RUNS}[key]
    assert getattr(target, name) != value
    setattr(target, name, value)
    assert Setup.of(config(), TINY).serves(Setup.of(changed, TINY)) == (key in OF_RUNS)


def test_another_model_needs_other_engines(tmp_path: Path) -> None:
    setup = Setup.of(config(), TINY)
    assert not setup.serves(
        dataclasses.replace(setup, engine=dataclasses.replace(setup.engine, model=tmp_path))
    )


def test_weights_must_fit_the_object_store() -> None:
    """Adapters of some MB fit every store; whole models fit the store that was made for them."""
    small = dataclasses.replace(Setup.of(config(), TINY), weights=0)
    adapter = dataclasses.replace(small, weights=20 * 2**20)
    model = dataclasses.replace(small, weights=600 * 2**20)
    assert small.serves(adapter)
    assert not small.serves(model)
    assert not adapter.serves(model)
    assert model.serves(model)
    assert model.serves(small)
