"""Scoring answers that were written elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlpost.envs.dataset import rescore

FUNCTIONS = """
def right(answer, row):
    return answer == row["answer"]

def short(answer):
    return 1 - len(answer) / 10

def odd(answer):
    if answer == "x":
        raise LookupError("no judge")
    return 1

def huge(answer):
    return 1e308

def leaves(answer):
    raise SystemExit(3)

def broken(answer):
    raise LookupError("no judge at all")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    rows = [
        {"prompt": "1 + 1", "answer": "2", "response": "2"},
        {"prompt": "1 + 2", "answer": "3", "response": ["3", "x"]},
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "judges", raising=False)
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_answer_gets_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["answers.jsonl", "--score", "judges:right", "--score", "judges:short", "--weights", "1", "0.5"]
    assert rescore.main([*argv, "--out", "scores.jsonl"]) == 0
    found = lines(folder / "scores.jsonl")
    assert [(line["row"], line["answer"], line["reward"], line["success"]) for line in found] == [
        ("answers.jsonl:1", 0, 1.45, True),
        ("answers.jsonl:2", 0, 1.45, True),
        ("answers.jsonl:2", 1, 0.45, False),
    ]
    assert found[2]["parts"] == {"right": 0.0, "short": 0.9}
    told = capsys.readouterr().out
    assert "3 answers: reward 1.1167, success 66.7%" in told
    assert "outcomes: CORRECT 2, WRONG 1" in told
    assert "right: 0.6667 on 3 answers" in told


def test_failures_are_counted_and_left_out_of_means(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rescore.main(["answers.jsonl", "--score", "judges:odd", "--out", "scores.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "2 answers: reward 1.0000, success 100.0%" in told
    assert "1 of 3 could not be scored; the first, answers.jsonl:2: LookupError: no judge (judges.py:" in told
    assert lines(folder / "scores.jsonl")[2]["error"].startswith("LookupError: no judge")


def test_where_all_fail_it_fails_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rescore.main(["answers.jsonl", "--score", "judges:broken"]) == 1
    told = capsys.readouterr().out
    assert told.startswith(
        "3 of 3 could not be scored; the first, answers.jsonl:1: LookupError: no judge at all"
    )
    assert "success" not in told


@pytest.mark.parametrize(
    ("function", "told"), [("huge", "at most 1e+15"), ("leaves", "SystemExit: 3 (judges.py:")]
)
def test_what_cannot_be_averaged_or_leaves_fails_its_own_answer(
    folder: Path, function: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescore.main(["answers.jsonl", "--score", f"judges:{function}", "--out", "scores.jsonl"]) == 1
    assert told in capsys.readouterr().out
    assert len(lines(folder / "scores.jsonl")) == 3


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ["answers.jsonl", "--score", "exact", "--response", "said"],
            "answers.jsonl:1: its field 'said' is None",
        ),
        (
            ["answers.jsonl", "--score", "exact", "--out", "none/scores.jsonl"],
            "--out none/scores.jsonl: refused",
        ),
        (["none.jsonl", "--score", "exact"], "none.jsonl: there is no such file"),
        (["answers.jsonl", "--score", "exact", "--weights", "1", "2"], "are 2, for 1 functions"),
        (["answers.jsonl", "--score", "exact", "--arg", "nonsense"], "--arg nonsense: must be KEY=VALUE"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    folder: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescore.main(["--out", "scores.jsonl", *argv]) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "scores.jsonl").exists()
