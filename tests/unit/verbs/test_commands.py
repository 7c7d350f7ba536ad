"""The commands of docs/after-training.md are such that the verbs take them, and every verb has its help."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from rlpost.verbs.command_line import exit_code, printable

PAGE = Path(__file__).parents[3] / "docs" / "after-training.md"
COMMANDS = sorted(set(re.findall(r"python -m (rlpost\.verbs\.[^`\n]+)", PAGE.read_text(encoding="utf-8"))))
VERBS = ("chat", "compare_runs", "merge", "push", "serve")


def test_the_page_has_every_verb() -> None:
    assert {command.split()[0].removeprefix("rlpost.verbs.") for command in COMMANDS} == set(VERBS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_up_to_its_run_which_is_not_here(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse would end the process at a word that it does not know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    module, *argv = shlex.split(command)
    assert importlib.import_module(module).main(argv) == 1
    assert "RUN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"rlpost.verbs.{verb}").main(["--help"])
    assert ended.value.code == 0
    assert f"python -m rlpost.verbs.{verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb\nc", "a\tb\nc"), ("\x1b[31m\x9b\r", "\ufffd[31m\ufffd\ufffd"), ("\ud83d", "?"), ("é✓", "é✓")],
)
def test_nothing_that_a_terminal_obeys_is_left(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_ctrl_c_ends_a_verb_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(interrupted) == 130
    assert capsys.readouterr().err == "Stopped.\n"
