"""The doctor on faked facts: every fault is a finding with its remedy, and the exit code says whether a run fails."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlpost.cluster.ray_cluster import Needs
from rlpost.command.main import main
from rlpost.config.compose import compose
from rlpost.config.schema import Config, PlacementStrategy, RayConfig, Task
from rlpost.doctor import cluster, examine, facts, show
from rlpost.doctor.facts import Facts, Gpu, Space
from rlpost.doctor.finding import Finding, Level, error, exit_code, ok, warning
from rlpost.doctor.fit import gpu_findings, memory_finding, plan_of_node
from rlpost.doctor.machine import machine_findings
from rlpost.doctor.nodes import node_findings
from rlpost.doctor.placement import bundles, placed, placement_finding
from rlpost.errors import ClusterError, ConfigError
from rlpost.memory.parts import Part, Plan, Process
from rlpost.memory.plan import Saving

GIB = 2**30
VERSIONS = dict.fromkeys(
    ("python", "rlpost", "torch", "transformers", "vllm", "ray", "peft", "deepspeed"), "1"
)
HEALTHY = Facts(
    host="node",
    processor="a processor",
    instructions=("avx2", "fma"),
    cores=8,
    quota=None,
    load=0.5,
    memory=32 * GIB,
    memory_free=30 * GIB,
    shared=Space("/dev/shm", 16 * GIB, 16 * GIB),
    temporary=Space("/tmp", 100 * GIB, 90 * GIB),
    working=Space("/work", 100 * GIB, 90 * GIB),
    open_files=65536,
    open_files_most=65536,
    user_processes=-1,
    gpus=(),
    gpu_fault="",
    name_is_loopback=False,
    port_fault="",
    versions=VERSIONS,
)
GPU = Gpu("a GPU", 80 * GIB, 0, "1.0")
PLAN = Plan(
    (
        Process("driver", 1, (Part("libraries", GIB),)),
        Process("Ray's daemons", 1, (Part("libraries", GIB),)),
        Process("rollout worker", 2, (Part("libraries", GIB), Part("KV cache", 4 * GIB, certain=False))),
    )
)


def faults(found: list[Finding]) -> list[tuple[str, Level]]:
    return [(each.what, each.level) for each in found if each.level is not Level.ok]


def test_a_healthy_machine_has_no_fault() -> None:
    found = list(machine_findings(HEALTHY))
    assert faults(found) == []
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("changes", "what", "level"),
    [
        ({"instructions": ()}, "processor", Level.error),
        ({"quota": 1.5}, "cores", Level.warning),
        ({"load": 20.0}, "cores", Level.warning),
        ({"memory_free": GIB}, "memory", Level.warning),
        ({"gpu_fault": "no answer within 20 s"}, "GPUs", Level.error),
        ({"gpus": (replace(GPU, used=40 * GIB),)}, "GPUs", Level.warning),
        ({"shared": None}, "/dev/shm", Level.error),
        ({"shared": Space("/dev/shm", 2**26, 2**26)}, "/dev/shm", Level.warning),
        ({"temporary": Space("/tmp", GIB, GIB)}, "temporary folder", Level.warning),
        ({"working": Space("/work", GIB, 0)}, "working folder", Level.error),
        ({"open_files": 1024}, "open files", Level.warning),
        ({"open_files": 256, "open_files_most": -1}, "open files", Level.error),
        ({"user_processes": 1000}, "processes", Level.warning),
        ({"port_fault": "refused"}, "ports", Level.error),
        ({"versions": {**VERSIONS, "vllm": None}}, "packages", Level.error),
    ],
)
def test_each_fault_is_found_alone_with_a_remedy(changes: dict[str, Any], what: str, level: Level) -> None:
    found = list(machine_findings(replace(HEALTHY, **changes)))
    assert faults(found) == [(what, level)]
    assert all(each.remedy for each in found if each.level is not Level.ok)
    assert exit_code(found) == int(level is Level.error)


def test_a_machine_with_a_gpu_needs_no_avx2() -> None:
    assert faults(list(machine_findings(replace(HEALTHY, instructions=(), gpus=(GPU,))))) == []


def test_a_fault_without_a_remedy_cannot_be_said() -> None:
    with pytest.raises(AssertionError, match="remedy"):
        error("memory", "gone", "")
    with pytest.raises(AssertionError, match="remedy"):
        Finding("memory", Level.ok, "there", "do something")


def test_the_facts_of_this_machine_are_plausible() -> None:
    seen = facts.collect()
    assert seen.cores >= 1
    assert 0 < seen.memory_free <= seen.memory
    assert seen.temporary.total > 0
    assert seen.versions["ray"]
    assert seen.port_fault == ""
    assert json.loads(json.dumps(asdict(seen)))["host"] == seen.host


def test_a_line_of_nvidia_smi_is_read() -> None:
    assert facts._gpu("NVIDIA H200, 143771, 512, 570.1") == Gpu("NVIDIA H200", 143771 * 2**20, 2**29, "570.1")


def test_a_quota_is_in_cores(tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    file.write_text("150000 100000\n")
    assert facts._quota(file) == 1.5
    file.write_text("max 100000\n")
    assert facts._quota(file) is None
    assert facts._quota(tmp_path / "gone") is None


# --- memory


@pytest.mark.parametrize(
    ("memory", "free", "level"),
    [(32, 31, Level.ok), (32, 11, Level.warning), (11, 11, Level.warning), (3.3, 3.3, Level.error)],
)
def test_a_plan_is_judged_by_what_is_certain_and_warned_of_by_what_may_be(
    memory: float, free: float, level: Level
) -> None:
    """The plan is 4 GiB in any run and at most 12; an error needs more than 15% too much."""
    seen = replace(HEALTHY, memory=int(memory * GIB), memory_free=int(free * GIB))
    found = memory_finding(PLAN, seen, [Saving("rollout.workers=1", GIB)])
    assert found.level is level
    if memory < 32:
        assert "rollout.workers=1 saves 1.0 GiB" in found.remedy


def test_a_node_gets_its_own_actors_and_rays_daemons() -> None:
    part = plan_of_node(PLAN, ["rollout worker"])
    assert [(each.name, each.count) for each in part.processes] == [
        ("Ray's daemons", 1),
        ("rollout worker", 1),
    ]


def test_an_engine_has_its_share_of_a_gpu_and_a_rank_all_of_it() -> None:
    engine = Process("rollout worker", 1, (), (Part("weights", 40 * GIB),))
    rank = Process("learner rank", 1, (), (Part("base weights", 40 * GIB),))
    cfg = Config()
    cfg.rollout.gpu_memory_utilization = 0.4
    found = list(gpu_findings(Plan((engine, rank)), cfg, [GPU]))
    assert [each.level for each in found] == [Level.error, Level.ok]
    assert "gpu_memory_utilization" in found[0].remedy


@pytest.mark.parametrize(
    ("sleep", "taken", "level", "remedy"),
    [
        (False, 32 + 10 + 50, Level.error, "give rollout.sleep=true, or lower"),
        (True, 2 + 10 + 50, Level.ok, ""),
    ],
)
def test_an_engine_and_a_rank_that_share_a_gpu_fit_it_together(
    sleep: bool, taken: int, level: Level, remedy: str
) -> None:
    engine = Process(
        "rollout worker", 1, (), (Part("weights", 20 * GIB, kept=False), Part("a swap", 2 * GIB))
    )
    rank = Process(
        "learner rank", 1, (), (Part("base weights", 10 * GIB), Part("a step", 50 * GIB, kept=False))
    )
    cfg = Config()
    cfg.rollout.gpus = cfg.learner.gpus = 0.5
    cfg.rollout.gpu_memory_utilization, cfg.rollout.sleep = 0.4, sleep
    *_, together = gpu_findings(Plan((engine, rank)), cfg, [replace(GPU, memory=80 * GIB)])
    assert f"at least {taken}.0 GiB {'in turns' if sleep else 'at once'}, of 80.0 GiB" in together.text
    assert together.level is level
    assert together.remedy.startswith(remedy)


# --- placement


@pytest.fixture
def cfg() -> Config:
    cfg = Config(task=Task.rl)
    cfg.rollout.workers, cfg.rollout.cpus, cfg.learner.cpus = 2, 2.0, 1.0
    return cfg


def test_processes_claim_what_the_settings_say(cfg: Config) -> None:
    cfg.rollout.tensor_parallel = 2
    assert bundles(cfg) == [(["learner rank"], Needs(1, 0))] + [(["rollout worker"], Needs(4, 0))] * 2
    cfg.ray.placement, cfg.learner.workers = PlacementStrategy.spread, 3
    assert bundles(cfg)[0] == (["learner rank"] * 3, Needs(3, 0)), "they share a node"
    cfg.task = Task.eval
    assert len(bundles(cfg)) == 2


def test_large_actors_are_placed_first(cfg: Config) -> None:
    found, left = placed(bundles(cfg), {"a": Needs(2, 0), "b": Needs(3, 0)})
    assert found == {"a": ["rollout worker"], "b": ["rollout worker", "learner rank"]}
    assert left == []


@pytest.mark.parametrize(
    ("nodes", "free", "level", "text"),
    [
        ({"a": 5.0}, {"a": 5.0}, Level.ok, "2 x rollout worker, 1 x learner rank"),
        ({"a": 5.0}, {"a": 2.0}, Level.warning, "not what is free now"),
        ({"a": 1.0, "b": 1.0, "c": 9.0}, {}, Level.ok, "c: 2 x rollout worker"),
        (
            {"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5},
            {},
            Level.error,
            "no node is large enough for a rollout worker",
        ),
        (
            {"a": 2.0, "b": 2.0},
            {},
            Level.error,
            "the run claims 5 CPUs, and all nodes together have 4 CPUs",
        ),
        ({"a": 3.5, "b": 0.8, "c": 0.8}, {}, Level.warning, "found no place"),
    ],
)
def test_placement(
    cfg: Config, nodes: dict[str, float], free: dict[str, float], level: Level, text: str
) -> None:
    has = {name: Needs(cpus, 0) for name, cpus in nodes.items()}
    now = {name: Needs(cpus, 0) for name, cpus in (free or nodes).items()}
    found = placement_finding(cfg, has, now)
    assert found.level is level
    assert text in found.text


# --- nodes


def told(**changes: Any) -> dict[str, Any]:
    node = {
        "id": "n1",
        "name": "node head, 10.0.0.1",
        "cpus": 4.0,
        "gpus": 0.0,
        "free_cpus": 4.0,
        "free_gpus": 0.0,
    }
    seen = json.loads(json.dumps(asdict(HEALTHY)))
    return {**node, "facts": seen, "clock": {"ahead_s": 0.01, "doubt_s": 0.02}, **changes}


def second(**changes: Any) -> dict[str, Any]:
    return told(id="n2", name="node worker, 10.0.0.2", **changes)


def link(**changes: Any) -> dict[str, Any]:
    return {"source": "n1", "target": "n2", "mib_per_s": 900.0, "port_fault": "", **changes}


def judged(nodes: list[dict[str, Any]], links: list[dict[str, Any]]) -> list[Finding]:
    return list(node_findings(cluster.read({"nodes": nodes, "links": links}), VERSIONS))


def test_facts_come_back_from_a_node_as_they_were() -> None:
    [node] = cluster.read({"nodes": [told()], "links": []}).nodes
    assert node.facts == HEALTHY
    assert faults(judged([told(), second()], [link()])) == []


@pytest.mark.parametrize(
    ("change", "what", "level"),
    [
        ({"facts": None, "clock": None}, "node", Level.error),
        ({"clock": None}, "clock", Level.warning),
        ({"clock": {"ahead_s": -3.0, "doubt_s": 0.1}}, "clock", Level.warning),
        ({"facts": {**told()["facts"], "versions": {**VERSIONS, "ray": "2"}}}, "versions", Level.error),
        ({"facts": {**told()["facts"], "name_is_loopback": True}}, "host name", Level.warning),
        ({"facts": {**told()["facts"], "open_files": 10}}, "open files", Level.error),
    ],
)
def test_a_node_with_a_fault_is_named(change: dict[str, Any], what: str, level: Level) -> None:
    found = judged([told(), second(**change)], [])
    assert faults(found) == [(what, level)]
    [fault] = [each for each in found if each.level is not Level.ok]
    assert fault.node == "node worker, 10.0.0.2"


def test_a_clock_that_cannot_be_told_from_a_slow_answer_is_no_fault() -> None:
    assert faults(judged([second(clock={"ahead_s": 3.0, "doubt_s": 2.5})], [])) == []


@pytest.mark.parametrize(
    ("change", "what", "level"),
    [
        ({"mib_per_s": None}, "object store", Level.error),
        ({"mib_per_s": 3.0}, "object store", Level.warning),
        ({"port_fault": None}, "ports", Level.warning),
        ({"port_fault": "10.0.0.1:999: refused"}, "ports", Level.error),
    ],
)
def test_a_link_with_a_fault_names_both_ends(change: dict[str, Any], what: str, level: Level) -> None:
    found = judged([told(), second()], [link(**change)])
    assert faults(found) == [(what, level)]
    assert any(
        "node head, 10.0.0.1 to node worker, 10.0.0.2" in each.text for each in found if each.level is level
    )


def test_a_probe_that_hangs_is_ended_and_one_that_dies_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "START_S", 1.0)
    script = tmp_path / "python"
    monkeypatch.setattr(cluster.sys, "executable", str(script))
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o700)
    with pytest.raises(ClusterError, match="without an end"):
        cluster.look_at(RayConfig(address="auto", timeout_s=0.1))
    script.write_text("#!/bin/sh\necho a native reason >&2\nkill -ABRT $$\n")
    with pytest.raises(ClusterError, match=r"ended with -6: a native reason"):
        cluster.look_at(RayConfig(address="auto", timeout_s=30.0))


def test_a_cluster_that_cannot_be_joined_is_a_finding() -> None:
    with pytest.raises(ClusterError, match="nobody listens"):
        cluster.read({"fault": "nobody listens"})


# --- the whole


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "collect", lambda: HEALTHY)


@pytest.mark.usefixtures("healthy")
def test_the_verb_writes_json_and_says_by_its_code_whether_a_run_would_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "doctor.json"
    assert main(["doctor", "generalpoints_ppo", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["exit_code"] == 0
    assert {each["level"] for each in written["findings"]} == {"ok"}
    assert {"settings", "model", "precision", "placement", "memory plan"} <= {
        each["what"] for each in written["findings"]
    }
    assert [each["name"] for each in written["plan"]][-1] == "learner rank"
    assert "memory plan" in capsys.readouterr().out

    monkeypatch.setattr(facts, "collect", lambda: replace(HEALTHY, memory=GIB, memory_free=GIB))
    assert (
        main(["doctor", "generalpoints_ppo", "rollout.workers=8", "rollout.cpus=9", "--json", str(file)]) == 1
    )
    failed = {each["what"] for each in json.loads(file.read_text())["findings"] if each["level"] == "error"}
    assert failed == {"placement", "memory plan"}


@pytest.mark.usefixtures("healthy")
def test_without_words_it_looks_at_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "processor" in shown
    assert "settings" not in shown


@pytest.mark.usefixtures("healthy")
def test_a_cluster_is_looked_at_without_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[RayConfig]()

    def look_at(ray: RayConfig) -> cluster.ClusterFacts:
        asked.append(ray)
        return cluster.read({"nodes": [told(), second(facts=None, clock=None)], "links": []})

    monkeypatch.setattr(examine, "look_at", look_at)
    assert main(["doctor", "ray.address=10.0.0.1:6379"]) == 1
    assert asked[0].address == "10.0.0.1:6379"


@pytest.mark.usefixtures("healthy")
def test_the_memory_of_each_node_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both workers fit node 1 by their CPUs; its memory does not hold them."""
    little = {**told()["facts"], "memory": GIB, "memory_free": GIB}
    nodes = [told(facts=little), second(cpus=0.0, free_cpus=0.0)]
    monkeypatch.setattr(examine, "look_at", lambda ray: cluster.read({"nodes": nodes, "links": []}))
    cfg = Config(task=Task.rl, train_variant="faces_10")
    cfg.rollout.workers = 2
    seen = examine.examine(cfg, RayConfig(address="auto"))
    wrong = [each for each in seen.findings if each.level is Level.error]
    assert [(each.what, each.node) for each in wrong] == [("memory plan", "node head, 10.0.0.1")]


@pytest.mark.usefixtures("healthy")
def test_refused_settings_are_findings_each_with_its_remedy() -> None:
    words = ["experiment=generalpoints_ppo", "model=nowhere-to-be-found", "lora.rank=0", "learner.threads=0"]
    seen = examine.examine(compose(words), RayConfig())
    wrong = [each for each in seen.findings if each.level is Level.error]
    assert [each.what for each in wrong] == ["settings", "settings", "model"]
    assert any(each.text.startswith("lora.rank=0") and each.remedy.startswith("give") for each in wrong)


@pytest.mark.parametrize(
    "words", [["generalpoints_ppo", "lora.rnak=1"], ["model=tiny"], ["no_such_experiment"]]
)
def test_words_that_no_run_would_take_are_refused(words: list[str]) -> None:
    assert main(["doctor", *words]) == 2


def test_a_model_that_a_run_would_fetch_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLPOST_CACHE", str(tmp_path))
    assert examine.local_folder("smollm2-135m") is None
    assert list(tmp_path.iterdir()) == []
    assert examine.local_folder("tiny") is not None


def test_everything_that_was_found_is_shown() -> None:
    """On a narrow console too, with what looks like markup."""
    seen = examine.Examination(
        HEALTHY, [ok("a", "fine [x]"), warning("b", "slow", "wait"), error("c", "no", "mend")]
    )
    seen.plan, seen.saves = PLAN, [Saving("rollout.workers=1", GIB)]
    console = Console(width=60, record=True, markup=False)
    show.show(seen, console)
    text = console.export_text()
    for part in (
        "fine [x]",
        "remedy: wait",
        "remedy: mend",
        "2 x rollout worker",
        "KV cache",
        "rollout.workers=1",
    ):
        assert part in text
    assert "1 ok, 1 warning, 1 error" in text
    assert show.as_data(seen)["exit_code"] == 1


def test_a_message_of_another_form_is_one_finding() -> None:
    assert [each.text for each in examine._refusals("model", ConfigError("it\nfailed"))] == ["it failed"]
