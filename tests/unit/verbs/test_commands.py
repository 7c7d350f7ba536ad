"""The commands of docs/after-training.md are such that the verbs take them, and every verb has its help."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlpost.command.main import main
from rlpost.verbs import watch
from rlpost.verbs.printable import printable

PAGE = Path(__file__).parents[3] / "docs" / "after-training.md"
VERBS = ("chat", "compare-runs", "merge", "push", "serve", "spectrum", "watch")
COMMANDS = sorted(
    set(re.findall(rf"rlpost ((?:{'|'.join(VERBS)}) [^`\n]+)", PAGE.read_text(encoding="utf-8")))
)


def test_the_page_has_every_verb() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(VERBS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_up_to_its_run_which_is_not_here(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse would end the process at a word that it does not know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(watch, "WAIT_S", 0.1)
    assert main(shlex.split(command)) == 1
    assert "RUN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb\nc", "a\tb\nc"), ("\x1b[31m\x9b\r", "\ufffd[31m\ufffd\ufffd"), ("\ud83d", "?"), ("é✓", "é✓")],
)
def test_nothing_that_a_terminal_obeys_is_left(text: str, shown: str) -> None:
    assert printable(text) == shown
