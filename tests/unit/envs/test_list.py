"""The listing of environments and variants, and arguments from the command line."""

from __future__ import annotations

from typing import Any

import pytest

from rlpost.envs import list as listing
from rlpost.envs.command_line import env_arguments
from rlpost.envs.registry import variants


def test_everything_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert listing.main([]) == 0
    shown = capsys.readouterr().out
    for words in ("faces_11_12_13", "relative_old_town", "reasoning_gym:TASK", "dataset", "my_module:MyEnv"):
        assert words in shown
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "faces_" in line
    ]
    assert {row[1]: row[2] for row in rows}["faces_10"] == "trained"
    assert {row[1]: row[2] for row in rows}["faces_11_12_13"] == "held out"


def test_a_narrow_terminal_leaves_nothing_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert listing.main(["generalpoints"]) == 0
    shown = capsys.readouterr().out
    cells = [line.split("│")[1:-1] for line in shown.splitlines() if "│" in line]
    names = "".join(row[1].strip() for row in cells)
    assert "…" not in shown
    assert all(variant.name in names for variant in variants("generalpoints"))


def test_what_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["navgation"]) == 2
    assert "did you mean navigation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('["a"]', ["a"]),
        ("word", "word"),
        ("3 cats", "3 cats"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_of_their_types(text: str, value: Any) -> None:
    found = env_arguments([f"key={text}"])["key"]
    assert (found, type(found)) == (value, type(value))
