"""A run on two nodes that share nothing but Ray: no file system, no checkout, hostnames that resolve to loopback.

alone    the run on one node: two engines and two learner ranks, the optimizer's state in two shares (ZeRO 1)
joined   the same run with an engine and a rank on each node: the cable is taken out after the first iteration,
         the raylet of a fresh second node is killed after the second, and the run ends on a third one
Both must end with the same adapter, bit for bit, so each resume had a whole checkpoint.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.integration.machines import Machine, boot, connect, obstacle
from tests.integration.runs import Finished, reproducible
from tests.integration.two_nodes import FOLDER, TwoNodes, finish, kill, two_nodes

OBSTACLE = obstacle()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no two machines here: {OBSTACLE}"),
]

ITERATIONS = 3
SETTINGS = (
    "experiment=own_ppo",
    "env=dataset",
    "env_args.path=sums.jsonl",  # relative, and on the head alone
    "env_args.score=sums:score",
    "env_args.expert=answer",
    "dtype=float32",
    "sft.steps=2",
    f"algo.iterations={ITERATIONS}",
    "algo.critic_warmup=0",
    "rollout.workers=2",
    "rollout.episodes=16",
    "rollout.max_new_tokens=16",
    "rollout.max_model_len=128",
    "rollout.kv_cache_gib=0.2",
    "learner.workers=2",
    "learner.zero_stage=1",
    "learner.threads=1",
    "eval.episodes=8",
    "eval.start=false",
    "eval.greedy=false",
    "tracking.checkpoint_every=1",
    "tracking.wandb=disabled",
)
ON_ONE_NODE = ("rollout.cpus=0.5", "learner.cpus=0.5")
# Of a node's 2 CPUs an engine leaves 0.6, so neither two engines nor an engine and two ranks fit on one.
ON_EACH_NODE = ("rollout.cpus=1.4", "learner.cpus=0.5")
SCORER = """
def score(answer, row):
    return 1 - abs(len(answer) - len(row["answer"])) / 10
"""
RUN_S = 600.0  # on a busy machine
REFUSED_S = 120.0
# Ray gives a silent node up after 65 s at most (5 checks of 10 s, 3 s apart); rollout.timeout_s is 600.
LOST_S = 120.0


@dataclass(frozen=True)
class Loss:
    """How a run ended that lost a node."""

    output: str
    code: int
    seconds: float  # from the loss to the end of the run


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        write_task(nodes.folder)
        yield nodes


def write_task(folder: Path) -> None:
    """The data set and the scorer that SETTINGS name."""
    folder.mkdir()
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(12) for b in range(12)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.py").write_text(SCORER)


@pytest.fixture(scope="module")
def alone(nodes: TwoNodes) -> Finished:
    return whole(nodes, *SETTINGS, *ON_ONE_NODE, "output_dir=alone")


@pytest.fixture(scope="module")
def losses(nodes: TwoNodes) -> dict[str, Loss]:
    """The first two starts of the joined run, by what was lost. The second node is whole again afterwards."""
    joined = nodes.driver(*SETTINGS, *ON_EACH_NODE, "output_dir=joined", f"ray.address={nodes.address}")
    wait_for_checkpoint(nodes, 1, joined)
    nodes.other.unplug()
    cable = ended(joined)
    nodes.replace_other()
    resumed = nodes.driver(*resuming(nodes))
    wait_for_checkpoint(nodes, 2, resumed)
    (raylet,) = nodes.other.processes("raylet")
    raylet.kill()
    lost_raylet = ended(resumed)
    nodes.replace_other()
    return {"cable": cable, "raylet": lost_raylet}


@pytest.fixture(scope="module")
def joined(nodes: TwoNodes, losses: dict[str, Loss]) -> Finished:
    return whole(nodes, *resuming(nodes))


def resuming(nodes: TwoNodes) -> tuple[str, ...]:
    """The words that go on with the joined run: code and addresses must be named again."""
    return "resume=joined", "env_args.score=sums:score", f"ray.address={nodes.address}"


def wait_for_checkpoint(nodes: TwoNodes, iterations: int, run: subprocess.Popen[str]) -> None:
    mark = nodes.folder / "joined" / "checkpoints" / f"iteration-{iterations:06d}" / "progress.json"
    deadline = time.monotonic() + RUN_S
    while not mark.is_file():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint of iteration {iterations}; {kill(run)}"
        time.sleep(0.1)


def ended(run: subprocess.Popen[str]) -> Loss:
    """Wait for the end of a run that has just lost a node."""
    lost = time.monotonic()
    output = finish(run, 2 * LOST_S)
    return Loss(output, run.returncode, time.monotonic() - lost)


def whole(nodes: TwoNodes, *words: str) -> Finished:
    """A run on the head, which must succeed."""
    run = nodes.driver(*words)
    output = finish(run, RUN_S)
    assert run.returncode == 0, output
    folder = next(word.partition("=")[2] for word in words if word.startswith(("output_dir=", "resume=")))
    return Finished(nodes.folder / folder, output)


def refused(nodes: TwoNodes, *words: str, machine: Machine | None = None, **environment: str) -> str:
    """What a run printed that must stop by itself before its engines start."""
    engines_before = nodes.actors_so_far()
    run = nodes.driver(*SETTINGS, *ON_EACH_NODE, *words, machine=machine, **environment)
    output = finish(run, REFUSED_S)
    assert run.returncode in (1, 2), output
    assert nodes.actors_so_far() == engines_before, output
    return output


def test_a_model_on_the_head_alone_is_refused_before_engines_start(nodes: TwoNodes) -> None:
    shutil.copytree(TINY, nodes.folder / "model")
    output = refused(nodes, f"model={FOLDER}/model", "output_dir=refused", f"ray.address={nodes.address}")
    assert f"{FOLDER}/model" in output
    assert nodes.other.name in output
    assert nodes.other.address in output


def test_an_address_in_the_environment_is_not_passed_over(nodes: TwoNodes) -> None:
    output = refused(nodes, "output_dir=passed_over", RAY_ADDRESS=nodes.address)
    assert "RAY_ADDRESS" in output
    assert "ray.address" in output


def test_a_driver_outside_the_cluster_is_refused(nodes: TwoNodes) -> None:
    outside = boot("node-c", "10.77.0.3", with_checkout=True)
    try:
        connect(nodes.head, outside)
        write_task(outside.path(FOLDER))
        words = ("output_dir=outside", f"ray.address={nodes.address}")
        output = refused(nodes, *words, machine=outside)
    finally:
        outside.end()
    assert nodes.address in output
    assert "ray start" in output  # the way that works


def test_the_doctor_looks_at_both_nodes_and_the_way_between_them(nodes: TwoNodes) -> None:
    asked = (
        "doctor",
        "generalpoints_ppo",
        *ON_EACH_NODE,
        f"ray.address={nodes.address}",
        "--json",
        "doctor.json",
    )
    output = finish(nodes.driver(*asked, module="rlpost"), REFUSED_S)
    assert (nodes.folder / "doctor.json").is_file(), output
    told = json.loads((nodes.folder / "doctor.json").read_text())
    by_node = {(each["what"], each["node"]): each for each in told["findings"]}
    for machine in (nodes.head, nodes.other):
        label = f"node {machine.name}, {machine.address}"
        assert by_node["versions", label]["level"] == by_node["clock", label]["level"] == "ok", output
        assert by_node["host name", label]["level"] == "warning", "the name resolves to loopback here"
    ways = [each["text"] for each in told["findings"] if each["what"] == "object store"]
    assert len(ways) == 2
    assert all("MiB/s" in way for way in ways)
    assert {each["level"] for each in told["findings"] if each["what"] == "ports"} == {"ok"}


@pytest.mark.parametrize("what", ["cable", "raylet"])
def test_a_lost_node_ends_the_run_within_a_bound_and_is_named(
    nodes: TwoNodes, losses: dict[str, Loss], what: str
) -> None:
    lost = losses[what]
    assert lost.code == 1, lost.output
    assert lost.seconds < LOST_S, lost.output
    assert nodes.other.address in lost.output, lost.output


def test_a_run_that_lost_its_second_node_twice_ends_like_the_run_on_one_node(
    alone: Finished, joined: Finished
) -> None:
    assert [reproducible(line) for line in joined.lines()] == [reproducible(line) for line in alone.lines()]
    assert (
        Adapter.load(joined.folder / "adapter").fingerprint
        == Adapter.load(alone.folder / "adapter").fingerprint
    )


def test_the_policy_moved(alone: Finished) -> None:
    """Else every run would end with the same adapter."""
    kl = [line["kl_reference"] for line in alone.lines()]
    assert kl[-1] > 1e-6, kl
