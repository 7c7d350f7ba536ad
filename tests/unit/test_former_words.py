"""Words of earlier commits: a record that has them is read, a user who types them is told the word of today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlpost.compare.cells import CellFiles, refuse_changes
from rlpost.config.compose import compose, to_yaml
from rlpost.config.former_words import ADDED, KEYS, VALUES, translated
from rlpost.config.schema import Config
from rlpost.errors import CheckpointError, ConfigError
from rlpost.record import checkpoint, jsonl
from rlpost.record.run_dir import RunDir
from rlpost.tasks.session import training_settings
from tests.unit import one_rank
from tests.unit.episodes import episode, turn

PPO = "experiment=generalpoints_ppo"
FORMER = {
    "task=ppo": "task=rl",
    "algo.engine_correction=truncate": "algo.rollout_is=truncate",
    "algo.engine_correction_cap=3.5": "algo.rollout_is_cap=3.5",
}
"""What was typed, and what is typed now."""


def in_former_words(text: str) -> str:
    """YAML or JSON of today as an earlier commit wrote it."""
    words = {"task: rl\n": "task: ppo\n", '"task": "rl"': '"task": "ppo"'}
    for now, former in words.items():
        text = text.replace(now, former)
    return re.sub(r"\brollout_is(_cap)?\b", r"engine_correction\1", text)


def test_every_former_word_is_tested() -> None:
    assert {f"{key}={value}" for key, value in VALUES} <= FORMER.keys()
    assert {typed.partition("=")[0] for typed in FORMER} >= KEYS.keys()


@pytest.mark.parametrize(("former", "now"), FORMER.items())
def test_on_the_command_line_it_is_refused_with_the_word_of_today(
    former: str, now: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    for start in (PPO, f"resume={tmp_path}"):
        with pytest.raises(ConfigError) as caught:
            compose([start, former])
        assert f"{former}\n  reason: " in str(caught.value)
        assert f"(command line)\n  remedy: write {now}" in str(caught.value)
    assert compose([PPO, now]).name == "generalpoints_ppo"


@pytest.mark.parametrize(("former", "now"), FORMER.items())
def test_in_an_experiments_file_it_is_refused_with_the_word_of_today(
    former: str, now: str, tmp_path: Path
) -> None:
    key, _, value = former.partition("=")
    group, _, setting = key.rpartition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(f"{group}: {{{setting}: {value}}}\n" if group else f"{setting}: {value}\n")
    with pytest.raises(ConfigError) as caught:
        compose([f"experiment={file}"])
    assert f"({file})\n  remedy: write {now}" in str(caught.value)


def test_a_record_of_an_earlier_commit_is_gone_on_with(tmp_path: Path) -> None:
    cfg = compose([PPO, "algo.clip=0.3", "algo.rollout_is=mask", "algo.rollout_is_cap=3.0"])
    run_dir = RunDir.create(tmp_path / "run", "name", 0, in_former_words(to_yaml(cfg)))
    checkpoint.save(run_dir, 2, one_rank.write, {"steps": 2}, training_settings(cfg))
    mark = run_dir.checkpoints / "iteration-000002" / checkpoint.MARK
    mark.write_text(in_former_words(mark.read_text()))
    assert '"ppo"' in mark.read_text()
    assert '"engine_correction_cap": 3.0' in mark.read_text()
    resumed = compose([f"resume={run_dir.path}"])
    resumed.resume = None
    assert resumed == cfg
    assert checkpoint.latest(run_dir, training_settings(resumed)).progress == {"steps": 2}
    assert (run_dir.read_config().task, run_dir.read_config().algo.rollout_is) == ("rl", "mask")
    resumed.algo.clip = 0.2
    with pytest.raises(CheckpointError, match=r"configuration: algo\.clip=0\.2 \(was 0\.3\)\n"):
        checkpoint.latest(run_dir, training_settings(resumed))


def test_a_checkpoint_from_before_a_setting_was_there_is_gone_on_with(tmp_path: Path) -> None:
    cfg = compose([PPO])
    run_dir = RunDir.create(tmp_path / "run", "name", 0, to_yaml(cfg))
    then = training_settings(cfg)
    for group, names in ADDED.items():
        for name in names if group != "eval." else ():  # how a run is evaluated is not part of a checkpoint
            # Some are free in a resumed run, and not there.
            (then.get(group.removesuffix("."), {}) if group else then).pop(name, None)
    checkpoint.save(run_dir, 2, one_rank.write, {"steps": 2}, then)
    assert checkpoint.latest(run_dir, training_settings(cfg)).progress == {"steps": 2}
    cfg.rollout.stop = ["."]
    with pytest.raises(CheckpointError, match=r"configuration: rollout\.stop=\["):
        checkpoint.latest(run_dir, training_settings(cfg))


def test_lines_of_an_earlier_commit_have_the_stage_of_today_also_when_they_are_written_again(
    tmp_path: Path,
) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "")
    lines = [{"stage": "sft", "step": 0}, {"stage": "ppo", "iteration": 0}, {"stage": "ppo", "iteration": 1}]
    run_dir.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [line["stage"] for line in run_dir.read_metrics()] == ["sft", "rl", "rl"]
    run_dir.truncate_metrics(0)
    assert [json.loads(line)["stage"] for line in run_dir.metrics.read_bytes().splitlines()] == ["sft", "rl"]


def test_episodes_of_an_earlier_commit_have_their_policys_version_in_each_turn() -> None:
    now = json.loads(jsonl.to_line(episode(turn(), turn("CORRECT", 5.0))))
    former = {**now, "adapter_version": 4}
    former["turns"] = [{k: v for k, v in each.items() if k != "policy_version"} for each in now["turns"]]
    assert jsonl.from_line(jsonl.encode(former)) == episode(turn(), turn("CORRECT", 5.0))
    assert [t.policy_version for t in jsonl.from_line(jsonl.encode(former)).turns] == [4, 4]
    assert jsonl.from_line(jsonl.encode({**former, "turns": []})).policy_version is None
    for damaged in ({**former, "turns": 3}, {**former, "turns": [3]}, {**now, "turns": former["turns"]}):
        with pytest.raises(ValueError, match="not an episode"):
            jsonl.from_line(jsonl.encode(damaged))


def test_a_cell_that_an_earlier_commit_planned_is_the_same_cell(tmp_path: Path) -> None:
    files = CellFiles(tmp_path, "ppo-0")
    files.config.parent.mkdir()
    files.config.write_text(in_former_words(to_yaml(Config())))
    assert "task: ppo" in files.config.read_text()
    refuse_changes(files, Config())


def test_only_settings_are_translated_and_nothing_that_an_environment_is_given() -> None:
    given = {
        "env_args": {"task": "ppo", 1: {"task": "ppo"}},
        "name": "ppo",
        "engine_correction": 1,
        "compare": {"arms": ["ppo"]},
    }
    compared = {"compare": {**ADDED["compare."], "arms": ["ppo"]}}
    assert translated(given) == {**ADDED[""], **given, **compared}


@pytest.mark.parametrize("settings", [[], "ppo", None, 3])
def test_settings_of_a_checkpoint_that_are_none_make_it_a_damaged_one(
    tmp_path: Path, settings: object
) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "")
    checkpoint.save(run_dir, 1, one_rank.write, {}, {})
    mark = run_dir.checkpoints / "iteration-000001" / checkpoint.MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"settings": settings}))
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        checkpoint.latest(run_dir, {})
