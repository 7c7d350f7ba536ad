"""What the learner's ranks are sent. Its calls, errors and deaths: tests/integration/test_learner.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.learner.group import LearnerGroup, _for_ranks


@pytest.mark.parametrize("method", ["save", "load"])
def test_a_rank_that_works_in_another_folder_finds_the_checkpoint(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    group, sent = LearnerGroup.__new__(LearnerGroup), list[Any]()
    monkeypatch.setattr(group, "_call", lambda *call: sent.append(call))
    getattr(group, method)(Path("outputs/run"))
    assert sent == [(method, tmp_path / "outputs" / "run")]


def test_a_rank_that_works_in_another_folder_finds_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = Config(adapter="outputs/run/adapter")
    assert _for_ranks(cfg).adapter == str(tmp_path / "outputs" / "run" / "adapter")
    assert cfg.adapter == "outputs/run/adapter", "what checkpoints compare stays as it was given"
    assert _for_ranks(Config()) == Config()
