"""Data files on their way to nodes that lack them; the package is imported as a worker of another node would."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from rlpost.cluster import data_files
from rlpost.cluster.data_files import on_this_node, packaged, travelling, with_absolute_paths
from rlpost.config.schema import Config
from rlpost.envs import registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's folder with two files of one name and a folder."""
    home = tmp_path / "driver"
    for name, text in (("a/rows.jsonl", "a"), ("b/rows.jsonl", "b"), ("routes/route_infos.json", "{}")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    monkeypatch.chdir(home)
    monkeypatch.delitem(sys.modules, data_files.PACKAGE, raising=False)
    return home


def config() -> Config:
    cfg = Config(
        env="dataset", env_args={"path": "a/rows.jsonl", "held_out_path": "b/rows.jsonl", "score": "exact"}
    )
    cfg.retention.env, cfg.retention.env_args = "navigation", {"data": "routes", "mode": "absolute"}
    return cfg


def test_paths_become_absolute_and_nothing_else_changes(folder: Path) -> None:
    cfg = config()
    found = with_absolute_paths(cfg)
    assert found.env_args == {
        "path": str(folder / "a/rows.jsonl"),
        "held_out_path": str(folder / "b/rows.jsonl"),
        "score": "exact",
    }
    assert found.retention.env_args == {"data": str(folder / "routes"), "mode": "absolute"}
    assert cfg == config(), "the driver's own settings stay as they were given"
    hub = Config(env="dataset", env_args={"path": "hf:openai/gsm8k"})
    assert with_absolute_paths(hub) == hub
    own = Config(env="my_module:MyEnv", env_args={"path": "a/rows.jsonl"})
    assert with_absolute_paths(own) == own, "what a user's arguments mean is unknown"


def test_files_come_to_a_node_that_lacks_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = with_absolute_paths(config())
    assert on_this_node(cfg) == cfg, "a path that exists is used"
    with packaged(data_files.data_files(cfg)) as [package]:
        shutil.copytree(package, tmp_path / "node" / package.name)  # as Ray does
    assert not package.exists()
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "routes")
    assert on_this_node(cfg) == cfg, "what was not sent is missing, and its name stays"
    monkeypatch.syspath_prepend(str(tmp_path / "node"))
    found = on_this_node(cfg)
    assert Path(str(found.env_args["path"])).read_text() == "a"
    assert found.env_args["held_out_path"] == cfg.env_args["held_out_path"]
    assert [path.name for path in Path(str(found.retention.env_args["data"])).iterdir()] == [
        "route_infos.json"
    ]


def test_large_files_do_not_travel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = data_files.data_files(config())
    assert paths == [folder / "a/rows.jsonl", folder / "b/rows.jsonl", folder / "routes"]
    monkeypatch.setattr(data_files, "LIMIT", 4)
    assert travelling(paths)
    monkeypatch.setattr(data_files, "LIMIT", 3)
    assert not travelling(paths)
    with packaged(paths) as nothing:
        assert nothing == []


@pytest.mark.parametrize("name", ["dataset", "agent", "navigation"])
def test_arguments_that_name_files_are_those_of_the_environment(name: str) -> None:
    args = {"path": "p", "held_out_path": "h", "data": "d", "score": "s:s"}
    expected = {"data": "d"} if name == "navigation" else {"path": "p", "held_out_path": "h"}
    assert registry.data_paths(name, args) == expected
    assert registry.data_paths(name, {"path": ["p"], "data": ""}) == {}
