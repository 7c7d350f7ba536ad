"""Real Ray, a scripted engine: workers play ahead during an update, take a swap in mid-episode, and one is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlpost.cluster import ray_cluster
from rlpost.config.schema import Config, RayConfig
from rlpost.rollout import pool as pool_module
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.specs import training_specs
from rlpost.rollout.streaming import StreamingRollouts
from rlpost.types import Canary
from rlpost.weights.adapters import Adapter, fingerprint
from rlpost.weights.models import TINY
from tests.integration.test_stream import STEP_S, BatchActor

pytestmark = pytest.mark.integration

ITERATIONS = 5
UPDATE_S = 20 * STEP_S


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutPool]:
    """Two workers whose engines die in their eighth step beside the file that the configuration names."""
    cfg = Config(name=str(tmp_path / "die"), env_args={"verify_iter": 3})
    cfg.rollout.workers, cfg.rollout.cpus, cfg.rollout.timeout_s = 2, 0.25, 120.0
    cfg.rollout.episodes, cfg.rollout.group_size, cfg.rollout.max_num_seqs = 12, 3, 2
    cfg.rollout.max_staleness, cfg.algo.iterations = 1, ITERATIONS
    monkeypatch.setattr(pool_module, "RolloutActor", BatchActor)
    with ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1, gpus=0)):
        pool = RolloutPool(cfg, TINY)
        pool.wait_ready()
        yield pool
        pool.close()


def swap(pool: RolloutPool, version: int) -> None:
    pool.swap(Adapter({}, {}, version, fingerprint({})), Canary((1, 2), (-1.0,)))


def test_a_run_that_plays_ahead_and_loses_a_worker(pool: RolloutPool) -> None:
    """The worker dies in an update, when nobody waits for it."""
    rollouts = StreamingRollouts(pool, pool.cfg, Sampling(1.0, 64))
    swap(pool, 1)
    replayed, ages, waits = 0.0, list[float](), list[float]()
    for iteration in range(ITERATIONS):
        live, began = iteration + 1, time.monotonic()
        batch = rollouts.collect(training_specs(pool.cfg, iteration))
        waits.append(time.monotonic() - began)
        assert [(t.iteration, t.episode) for t in batch] == [(iteration, e) for e in range(12)]
        line = rollouts.metrics(batch, live)
        replayed, ages = replayed + line["streaming/replayed"], [*ages, line["staleness/max"]]
        if iteration == 2:
            Path(pool.cfg.name).touch()
        time.sleep(UPDATE_S)  # an update
        with rollouts.swapping(iteration + 1):
            began = time.monotonic()
            swap(pool, live + 1)
            assert pool.restarts or time.monotonic() - began < 20 * STEP_S, "a playing worker took no swap"
        if iteration == 0:
            rollouts.settle()  # as before an evaluation
            assert len(pool.collect(training_specs(pool.cfg, ITERATIONS), Sampling(0.0, 64))) == 12
    assert pool.restarts == 1
    assert replayed > 0
    assert max(ages) == 1, "no episode was played ahead"
    assert line["streaming/in_flight"] == 0
