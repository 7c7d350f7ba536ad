"""Real Ray, joined by drivers in processes of their own: what one run reserves, another waits for. No engines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlpost.cluster import ray_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

CLUSTER = """
import sys
import ray

ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
for _ in sys.stdin:
    print(ray.available_resources().get("CPU", 0.0), flush=True)
"""

# A run of two rollout workers and a learner rank, of 1 CPU each. Worker 0 dies, and a new one takes its place.
DRIVER = """
import os, sys
import ray
from rlpost.cluster import actor_calls, ray_cluster
from rlpost.cluster.placement import Plan, placed
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import RayConfig

class Actor:
    def niceness(self):
        import psutil
        return psutil.Process().nice() - psutil.Process().parent().nice()

config = RayConfig(address=sys.argv[1], wait_s=float(sys.argv[2]))
plan = Plan((Needs(1, 0, 1),) * 2, (Needs(1, 0, 1),))
with (
    ray_cluster.connect(config, plan.needs),
    placed(plan, config, lambda line: print(line, flush=True)) as placement,
):
    actors = [ray.remote(**options)(Actor).remote() for options in (
        placement.rank(0), placement.worker(0), placement.worker(1))]
    nice = actor_calls.get_all([actor.niceness.remote() for actor in actors], 120, ["rank 0", "worker 0", "worker 1"])
    ray.kill(actors[1])
    successor = ray.remote(**placement.worker(0))(Actor).remote()
    nice.append(actor_calls.get(successor.niceness.remote(), 60, "worker 0 (replacement)"))
    print("placed", *nice, placement.node_of_rank(0), flush=True)
    sys.stdin.read()
"""

# A run of one rollout worker on 1 CPU, which may have three, on a cluster that has room for four.
GROWING = """
import sys, time
from pathlib import Path
from rlpost.cluster import ray_cluster
from rlpost.cluster.placement import Plan, placed
from rlpost.config.schema import Config
from rlpost.rollout import pool as pool_module
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.specs import training_specs
from rlpost.weights.models import TINY
from tests.integration.test_stream import SAMPLING, BatchActor
from tests.integration.test_streaming import swap

pool_module.RolloutActor = BatchActor
cfg = Config(name=sys.argv[2])
cfg.ray.address, cfg.rollout.workers, cfg.rollout.max_workers, cfg.rollout.cpus = sys.argv[1], 1, 3, 1.0
cfg.rollout.episodes, cfg.rollout.group_size, cfg.rollout.max_num_seqs = 12, 2, 2
plan = Plan.of(cfg, with_learner=False)
with ray_cluster.connect(cfg.ray, plan.needs), placed(plan, cfg.ray, print) as placement:
    pool = RolloutPool(cfg, TINY, placement)
    pool.attend(lambda line: print(line, flush=True), lambda: None)
    pool.wait_ready()
    version, deadline = 1, time.monotonic() + 120
    swap(pool, version)
    while pool.workers < 3 and time.monotonic() < deadline:
        pool.grow()
        pool.collect(training_specs(cfg, version), SAMPLING)
        version += 1
        swap(pool, version)
    played = pool.collect(training_specs(cfg, version), SAMPLING)
    print("played", len(played), *sorted({turn.policy_version == version for t in played for turn in t.turns}))
    sys.stdin.read()
"""

OUTSIDE = """
import sys
from rlpost.cluster import joining, ray_cluster
from rlpost.config.schema import RayConfig
from rlpost.errors import ClusterError

joining.own_addresses = lambda: {"192.0.2.1"}
try:
    with ray_cluster.connect(RayConfig(address=sys.argv[1], timeout_s=10), ray_cluster.Needs(1, 0)):
        print("joined")
except ClusterError as error:
    print("refused:", error)
"""

Process = subprocess.Popen[str]


def started(*words: str) -> Process:
    """A Python process that imports this tree, with pipes to its standard input and output."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        "PYTHONPATH": str(Path(ray_cluster.__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def line_of(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def free_cpus(cluster: Process) -> float:
    assert cluster.stdin is not None
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    return float(line_of(cluster))


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Process, str]]:
    """A Ray with 4 CPUs, whose workers are started at Ray's own niceness, and its address."""
    with tempfile.TemporaryDirectory(prefix="rlpost-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = started(CLUSTER, folder)
        yield process, line_of(process)
        process.communicate(timeout=60)


def test_two_runs_that_fit_one_after_the_other_do_so_and_a_killed_driver_gives_all_back(
    cluster: tuple[Process, str],
) -> None:
    ray_process, address = cluster
    first = started(DRIVER, address, "60")
    second: Process | None = None
    try:
        assert line_of(first).startswith("placed 0 0 0 0 node "), "workers have the raylet's own niceness"
        assert free_cpus(ray_process) == 1
        second = started(DRIVER, address, "120")
        waiting = line_of(second)
        assert "waiting for room on the cluster: the run needs 3 CPUs" in waiting
        assert "free now: 1 of 4 CPUs" in waiting
        assert free_cpus(ray_process) == 1, "a run that waits holds nothing"
        first.kill()
        told = line_of(second)
        while told.startswith("waiting"):
            told = line_of(second)
        assert told.startswith("placed")
        second.communicate(timeout=60)  # closes its standard input, upon which it ends
        assert second.returncode == 0
        assert free_cpus(ray_process) == 4
    finally:
        for driver in filter(None, (first, second)):
            driver.kill()
            driver.communicate(timeout=60)


def test_a_driver_outside_the_cluster_is_refused_in_seconds(cluster: tuple[Process, str]) -> None:
    """And so is one that reaches a port where something other than Ray listens."""
    _, address = cluster
    output, _ = started(OUTSIDE, address).communicate(timeout=60)
    assert f"refused: This machine is not a node of the Ray cluster at ray.address={address}" in output
    assert "ray start --address=" in output
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        output, _ = started(OUTSIDE, address).communicate(timeout=90)
    assert f"refused: The Ray cluster at ray.address={address} does not tell its nodes" in output


def test_a_run_grows_where_there_is_room_and_gives_all_back(
    cluster: tuple[Process, str], tmp_path: Path
) -> None:
    ray_process, address = cluster
    run = started(GROWING, address, str(tmp_path / "die"))
    try:
        lines = [line_of(run) for _ in range(3)]
        assert [line.split(" on node ")[0] for line in lines[:2]] == [
            f"rollout worker {i} joins" for i in (1, 2)
        ]
        assert [line.rpartition(" (")[2] for line in lines[:2]] == ["2 of at most 3)", "3 of at most 3)"]
        assert lines[2] == "played 12 True"
        assert free_cpus(ray_process) == 1.0
    finally:
        run.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while (free := free_cpus(ray_process)) < 4.0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert free == 4.0
