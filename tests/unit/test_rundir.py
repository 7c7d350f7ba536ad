"""The run directory: whole files or none, exact round trips, plain errors."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.errors import OutputError
from rlpost.record import files, jsonl
from rlpost.record.run_dir import (
    RunDir,
    evaluation_name,
    iteration_name,
    read_trajectories,
    stage_number,
    step_name,
)
from rlpost.types import Trajectory
from tests.unit.episodes import episode, trajectories, turn


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", "name", 3, "seed: 3\n")


def test_create_writes_the_config_and_the_folders(run_dir: RunDir) -> None:
    assert run_dir.config.read_text() == "seed: 3\n"
    assert run_dir.checkpoints.is_dir()
    assert run_dir.trajectories.is_dir()
    assert run_dir.adapter == run_dir.path / "adapter"
    assert not run_dir.adapter.exists()


def test_default_folder_names_experiment_time_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = RunDir.create(None, "generalpoints_ppo", 7, "").path
    assert path.parent == Path("outputs/generalpoints_ppo")
    day, clock, seed = path.name.split("-")
    assert (len(day), len(clock), seed) == (8, 6, "7")


def test_a_folder_with_something_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty(?s:.)*resume="):
        RunDir.create(tmp_path, "name", 0, "")
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RunDir.create(tmp_path / "file", "name", 0, "")


def test_open_takes_up_a_run_and_refuses_anything_else(run_dir: RunDir, tmp_path: Path) -> None:
    assert RunDir.open(run_dir.path) == run_dir
    with pytest.raises(OutputError, match=r"resume=.*\n.*config\.yaml is missing"):
        RunDir.open(tmp_path)


def test_versions_name_every_package_and_remember_earlier_ones(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.write_versions()
    run_dir.write_versions()
    first = json.loads(run_dir.versions.read_text())
    assert first["earlier"] == []
    expected = {"rlpost", "torch", "transformers", "vllm", "ray", "peft", "deepspeed"}
    assert expected | {"python", "git", "platform", "cpu_count"} <= first.keys()
    monkeypatch.setattr("rlpost.record.versions.os.cpu_count", lambda: 999)
    run_dir.write_versions()
    second = json.loads(run_dir.versions.read_text())
    assert second["cpu_count"] == 999
    assert [before["cpu_count"] for before in second["earlier"]] == [first["cpu_count"]]


def test_metrics_are_a_line_each_and_strict_json(run_dir: RunDir) -> None:
    run_dir.append_metrics({"iteration": 1, "reward": 0.1})
    run_dir.append_metrics({"iteration": 2, "reward": math.nan, "kl": math.inf, "stage": "rl"})
    lines = run_dir.metrics.read_text().splitlines()
    assert lines[0] == '{"iteration": 1, "reward": 0.1, "non_finite": 0}'
    strict = json.loads(lines[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == {"iteration": 2, "reward": None, "kl": None, "stage": "rl", "non_finite": 2}
    assert run_dir.read_metrics() == [json.loads(line) for line in lines]


def test_a_line_cut_short_by_a_crash_is_left_out_and_a_broken_one_refused(run_dir: RunDir) -> None:
    run_dir.append_metrics({"iteration": 1})
    with run_dir.metrics.open("a") as file:
        file.write('{"iteration": 2, "rew')
    assert [m["iteration"] for m in run_dir.read_metrics()] == [1]
    with run_dir.metrics.open("a") as file:
        file.write("\n")
    with pytest.raises(OutputError, match=r"metrics\.jsonl\n.*line 2 cannot be read"):
        run_dir.read_metrics()


def test_truncated_record_equals_that_of_a_run_that_never_went_further(tmp_path: Path) -> None:
    def record(path: Path, iterations: int) -> RunDir:
        run = RunDir.create(path, "name", 0, "seed: 0\n")
        for stage in ("start", "before"):
            run.append_metrics({"stage": stage, "seconds/total": 1.0})
        run.append_metrics({"stage": "sft", "step": 29, "loss": 2.0})
        run.append_metrics({"stage": "warm", "seconds/total": 1.0})
        for i in range(1, iterations + 1):
            run.append_metrics({"stage": "rl", "iteration": i, "reward": i / 3})
            run.append_metrics({"stage": iteration_name(i), "seconds/total": 1.0})
            run.write_trajectories(iteration_name(i), [episode(turn(), index=i)])
            run.write_evaluation(iteration_name(i), "faces_10", "greedy", [episode(turn())])
        run.write_evaluation("before", "faces_10", "greedy", [episode(turn())])
        return run

    short, long = record(tmp_path / "short", 11), record(tmp_path / "long", 13)
    long.write_evaluation("after", "faces_10", "greedy", [episode(turn())])
    long.append_metrics({"stage": "after", "seconds/total": 1.0})
    long.write_summary({"iterations": 13})
    long.report.write_text("<p>")
    for path, cut in ((long.metrics, '{"iteration": 14'), (long.evaluation_index, '{"stage": "af')):
        with path.open("a") as file:
            file.write(cut)
    long.truncate_metrics(11)
    assert _contents(long.path) == _contents(short.path)


def test_supervised_steps_are_truncated_by_their_own_key(run_dir: RunDir) -> None:
    for step in range(4):
        run_dir.append_metrics({"step": step})
    run_dir.truncate_metrics(2)
    assert [m["step"] for m in run_dir.read_metrics()] == [0, 1, 2, 3]
    run_dir.truncate_metrics(2, key="step")
    assert [m["step"] for m in run_dir.read_metrics()] == [0, 1, 2]


def test_examples_are_noted_by_step_and_truncated_with_it(run_dir: RunDir) -> None:
    assert run_dir.read_examples() == []
    for step in range(3):
        run_dir.append_examples(step, [f"24:{step}", "24:9"])
    run_dir.truncate_metrics(-1)
    assert len(run_dir.read_examples()) == 3, "the warm start comes before the first iteration"
    run_dir.truncate_metrics(1, key="step")
    assert run_dir.read_examples() == [
        {"step": 0, "instances": ["24:0", "24:9"]},
        {"step": 1, "instances": ["24:1", "24:9"]},
    ]


def test_examples_mixed_into_iterations_are_truncated_with_them(run_dir: RunDir) -> None:
    run_dir.append_examples(5, ["24:0"])
    for iteration in range(3):
        run_dir.append_examples(iteration, [f"24:{iteration}"], key="iteration")
    run_dir.truncate_metrics(0)
    assert run_dir.read_examples() == [
        {"step": 5, "instances": ["24:0"]},
        {"iteration": 0, "instances": ["24:0"]},
    ]


def test_evaluations_between_supervised_steps_are_truncated(run_dir: RunDir) -> None:
    for step in (4, 9):
        run_dir.append_metrics({"stage": step_name(step)})
        run_dir.write_trajectories(evaluation_name(step_name(step), "faces_10", "sampled"), [episode(turn())])
    run_dir.truncate_metrics(4, key="step")
    assert [path.name for path in run_dir.trajectories.iterdir()] == [
        "eval-step-000004-faces_10-sampled.jsonl"
    ]
    assert [line["stage"] for line in run_dir.read_metrics()] == [step_name(4)]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=50, deadline=None)
@given(st.lists(trajectories, max_size=3))
def test_trajectories_round_trip_exactly(batch: list[Trajectory]) -> None:
    lines = [jsonl.to_line(trajectory) for trajectory in batch]
    for line in lines:
        assert line.count(b"\n") == 1
        line.decode("utf-8")
    assert [jsonl.from_line(line) for line in lines] == batch


def test_trajectories_on_disk_are_readable_records(run_dir: RunDir) -> None:
    strange = "\ud83d lone, \u2028 line separator, \x00 nul, é 漢 😀, </script>, \\ud83d"
    written = [
        episode(turn(answer=strange), turn("CORRECT", 5.0, observation="try again"), success=True),
        episode(index=1, error="ValueError: no"),
    ]
    path = run_dir.write_trajectories("iteration-000003", written)
    assert read_trajectories(path) == written
    first = json.loads(path.read_bytes().split(b"\n")[0])
    assert first["reward"] == 4.0
    assert first["turns"][0]["answer"] == strange
    assert first["turns"][1]["observation"] == "try again"
    assert {"env", "variant", "seed", "instance", "ending", "error"} <= first.keys()
    assert {"context_ids", "answer_ids", "logprobs", "outcome", "finish", "policy_version"} <= first["turns"][
        0
    ].keys()
    assert "é 漢 😀".encode() in path.read_bytes()  # as a person reads it


def test_numbers_that_are_not_finite_survive_in_strict_json() -> None:
    broken = episode(turn(reward=math.inf), turn(reward=math.nan))
    line = jsonl.to_line(broken)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    read = jsonl.from_line(line)
    assert read.turns[0].reward == math.inf
    assert math.isnan(read.turns[1].reward)


def test_a_surrogate_pair_comes_back_as_the_character_it_spells() -> None:
    read = jsonl.from_line(jsonl.to_line(episode(turn(answer="\ud83d\ude00"))))
    assert read.turns[0].answer == "😀"


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-5],
        lambda line: b"[]",
        lambda line: line.replace(b'"seed"', b'"sead"'),
        lambda line: line.replace(b'"terminated"', b'"vanished"'),
        lambda line: line.replace(b'"reward": -1.0, "finish"', b'"reward": "1", "finish"'),
    ],
)
def test_a_damaged_episode_is_refused_by_line(run_dir: RunDir, damage) -> None:
    path = run_dir.write_trajectories("x", [episode(turn()), episode(turn())])
    good, bad, _ = path.read_bytes().split(b"\n")
    path.write_bytes(good + b"\n" + damage(bad))
    with pytest.raises(OutputError, match=r"x\.jsonl\n.*line 2"):
        read_trajectories(path)


def test_summary_round_trips_and_refuses_nan(run_dir: RunDir) -> None:
    assert run_dir.read_summary() is None
    run_dir.write_summary({"eval": {}, "seconds": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        run_dir.write_summary({"seconds": math.nan})
    assert run_dir.read_summary() == {"eval": {}, "seconds": 1.5}


PLACES = (("before", "faces_10"), ("after", "a-b"), ("iteration-000004", "faces_10"), ("step-000007", "x"))


def test_evaluations_of_an_older_record_are_found_by_name_and_indexed_by_a_resume(run_dir: RunDir) -> None:
    paths = {
        (stage, variant, "greedy"): run_dir.write_trajectories(evaluation_name(stage, variant, "greedy"), [])
        for stage, variant in PLACES
    }
    assert run_dir.evaluations() == paths
    run_dir.truncate_metrics(5)
    left = {key: path for key, path in paths.items() if key[0] in ("before", "iteration-000004")}
    assert run_dir.evaluations() == left
    assert sorted(run_dir.trajectories.iterdir()) == sorted(left.values())
    path = run_dir.write_evaluation("after", "faces_10", "greedy", [])
    assert run_dir.evaluations() == {**left, ("after", "faces_10", "greedy"): path}


def test_the_index_and_not_a_name_says_what_an_evaluation_is(run_dir: RunDir) -> None:
    paths = {
        (stage, variant, "greedy"): run_dir.write_evaluation(stage, variant, "greedy", [])
        for stage, variant in PLACES
    }
    run_dir.write_trajectories(
        "eval-before-cut-greedy", []
    )  # written, but the run ended before it was indexed
    again = run_dir.write_evaluation(*PLACES[0], "greedy", [])
    assert run_dir.evaluations() == paths
    again.unlink()
    assert ("before", "faces_10", "greedy") not in run_dir.evaluations()


@pytest.mark.parametrize("variant", ["math/algebra", "../up", "100%", "50%2F", "two\nlines", "é 漢", "a-b"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_variant_may_have_any_name(run_dir: RunDir, variant: str, indexed: bool) -> None:
    path = run_dir.write_evaluation("after", variant, "greedy", [])
    if not indexed:
        run_dir.evaluation_index.unlink()
    assert run_dir.evaluations() == {("after", variant, "greedy"): path}
    assert path.parent == run_dir.trajectories


@pytest.mark.parametrize(
    "change", [{"file": "../config.yaml"}, {"file": 3}, {"stage": None}, {"variant": []}]
)
def test_an_index_that_was_not_written_here_is_refused(run_dir: RunDir, change: dict[str, object]) -> None:
    run_dir.write_evaluation("after", "a", "greedy", [])
    run_dir.write_evaluation("after", "b", "greedy", [])
    first, second = map(json.loads, run_dir.evaluation_index.read_text().splitlines())
    run_dir.evaluation_index.write_text(f"{json.dumps(first)}\n{json.dumps(second | change)}\n")
    with pytest.raises(OutputError, match=r"evaluations\.jsonl\n.*line 2"):
        run_dir.evaluations()


@given(st.integers(0, 10**9))
def test_the_number_of_a_stage(number: int) -> None:
    assert stage_number(iteration_name(number)) == stage_number(step_name(number)) == number
    assert [stage_number(stage) for stage in ("before", "warm", "after")] == [None] * 3


@pytest.mark.parametrize("variant", ["faces_11_12_13", "old_town", "level_1", "a-b.c"])
def test_plain_names_of_variants_stand_in_the_files_as_they_are(variant: str) -> None:
    assert evaluation_name("before", variant, "sampled") == f"eval-before-{variant}-sampled"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "output_dir="), (errno.EIO, "check that")],
)
def test_a_failed_write_keeps_the_old_file_and_says_what_to_do(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    run_dir.write_summary({"seconds": 1.0})

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("rlpost.record.files.os.fsync", fail)
    with pytest.raises(OutputError, match=remedy) as caught:
        run_dir.write_summary({"seconds": 2.0})
    assert str(run_dir.summary) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert run_dir.read_summary() == {"seconds": 1.0}
    assert sorted(p.name for p in run_dir.path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "summary.json",
        "trajectories",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"metrics\.jsonl\n(?s:.)*No space left(?s:.)*free space"):
        RunDir(tmp_path).append_metrics({"iteration": 1})


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_whole(path, b"whole\n")
    real = Path.open

    class Half:
        """A file whose disk fills up in the middle of a write."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            return self.file.write(data[: len(data) // 2])

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Half(real(self, *a, **k)))
    with pytest.raises(OutputError, match="free space"):
        files.append_whole(path, b"second line\n")
    assert path.read_bytes() == b"whole\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder_is_named(run_dir: RunDir) -> None:
    run_dir.path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(OutputError, match="output_dir="):
            run_dir.write_summary({})
    finally:
        run_dir.path.chmod(stat.S_IRWXU)
