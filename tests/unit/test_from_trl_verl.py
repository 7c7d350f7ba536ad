"""Every name of rlpost's on the page for those who come from other libraries is a setting that there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from rlpost.config.keys import schema
from rlpost.config.presets import TABLE
from rlpost.envs.dataset.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "from-trl-verl.md"
ARGUMENTS = {f"env_args.{field.name}" for field in fields(Settings)}


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")
    ]
    return [row for row in cells if not row[0].startswith(("---", "what"))]


def unknown(name: str) -> bool:
    key, _, value = name.partition("=")
    if key == "algo":
        return bool(value) and value not in {each.name for each in TABLE}
    return key not in schema() and key not in ARGUMENTS


def test_the_last_column_names_settings() -> None:
    named = [name for row in rows() for name in re.findall(r"`([^`]+)`", row[-1])]
    wrong = [
        name
        for name in named
        if unknown(name) and name not in ("completion", "prompt", "held_out/VARIANT/loss")
    ]
    assert len(named) > 45
    assert not wrong


def test_rows_are_whole() -> None:
    assert {len(row) for row in rows()} == {3, 5}


def test_settings_in_the_text_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(
        r"\b((?:algo|rollout|learner|eval|sft|env_args)\.[a-z_]+)", re.sub(r"`[a-z]+_[^`]*`", "", text)
    )
    named += re.findall(r"`((?:algo|rollout|learner|eval|sft|env_args)\.[a-z_]+)", text)
    assert len(set(named)) > 20
    assert not {name for name in named if unknown(name)}


def test_a_wrong_name_is_seen() -> None:
    assert unknown("rollout.groupsize")
    assert unknown("algo=gppo")
    assert not unknown("algo=gspo")
