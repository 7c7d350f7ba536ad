"""Which of a user's files go to Ray's workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlpost.cluster.user_modules import import_roots, own_modules
from rlpost.config.schema import Config
from rlpost.envs import registry

ENVIRONMENT = """
import gymnasium, json, numpy
from rlpost.envs.texts import AnyText
{imported}

class Env(gymnasium.Env):
    def __init__(self, judge="", **_):
        self.observation_space = self.action_space = AnyText(9)

def score(answer, row):
    return True
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ship_env.py").write_text(ENVIRONMENT.format(imported="import ship_helper"))
    (tmp_path / "ship_helper.py").touch()
    (tmp_path / "ship_unused.py").touch()
    package = tmp_path / "ship_package" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "env.py").write_text(ENVIRONMENT.format(imported=""))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in list(sys.modules):
        if name.startswith("ship_"):
            monkeypatch.delitem(sys.modules, name)
    return tmp_path


def shipped(cfg: Config) -> list[str]:
    registry.make(cfg.env, **cfg.env_args)
    return [path.name for path in own_modules(cfg)]


def test_a_bundled_environment_needs_nothing() -> None:
    assert own_modules(Config()) == []


def test_a_module_goes_with_what_it_imports_from_beside_it(folder: Path) -> None:
    assert shipped(Config(env="ship_env:Env")) == ["ship_env.py", "ship_helper.py"]


def test_a_package_goes_whole(folder: Path) -> None:
    cfg = Config(env="ship_package.inner.env:Env")
    assert shipped(cfg) == ["ship_package"]
    assert import_roots(own_modules(cfg)) == [folder]


def test_what_an_argument_names_goes_too(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "1 + 1"}\n')
    args = {"path": str(folder / "rows.jsonl"), "score": "ship_env:score", "eval_share": 0}
    assert shipped(Config(env="dataset", env_args=args)) == ["ship_env.py", "ship_helper.py"]


def test_installed_modules_stay(folder: Path) -> None:
    assert shipped(Config(env="ship_package.inner.env:Env", env_args={"judge": "json:loads"})) == [
        "ship_package"
    ]
    assert own_modules(Config(env_args={"judge": "numpy:array", "other": "no_module:at_all"})) == []
