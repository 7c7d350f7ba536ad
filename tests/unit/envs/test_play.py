from __future__ import annotations

import subprocess
import sys

import pytest

from rlpost.envs.play import main


def _play(monkeypatch: pytest.MonkeyPatch, lines: list[object], *argv: str) -> int:
    typed = iter(lines)

    def read(_: str) -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", read)
    return main(["generalpoints", "--seed", "3", *argv])


def test_a_game(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _play(monkeypatch, ["1+1", "?"], "--variant", "faces_11_12_13") == 0
    shown = capsys.readouterr().out
    assert "Make 24. Rule: J=11, Q=12, K=13." in shown
    assert "WRONG_NUMBERS (-2)" in shown
    assert "solved 0 of 1, -2 points" in shown
    solution = shown.split("Try again.\n")[1].split("\n")[0].strip()
    assert _play(monkeypatch, [solution, KeyboardInterrupt()], "--variant", "faces_11_12_13") == 0
    shown = capsys.readouterr().out
    assert "CORRECT (+5): the formula is correct." in shown
    assert "solved 1 of 1, 5 points" in shown
    assert "Thank you for playing: solved 1 of 2, 5 points." in shown


def test_failing_to_the_end_shows_a_solution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _play(monkeypatch, ["1"] * 5) == 0
    assert "One solution: " in capsys.readouterr().out


def test_compat_and_json_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _play(monkeypatch, ["1 + 1", '{"formula": 24}', "", "7"], "--compat") == 0
    shown = capsys.readouterr().out
    assert "ILLEGAL_CHARACTER (-3)" in shown
    assert "CRASH (-3)" in shown
    assert "of 2" in shown


def test_unknown_variants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generalpoints", "--variant", "faces_9"]) == 2
    assert "faces_11_12_13: J, Q, K count as" in capsys.readouterr().err


def test_what_compat_cannot_play_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generalpoints", "--variant", "five_cards", "--compat"]) == 2
    assert "five_cards" in capsys.readouterr().err


def test_playing_imports_nothing_heavy() -> None:
    code = (
        "import sys, random; from rlpost.envs import play, registry; env = registry.make('generalpoints');"
        "env.reset(seed=0); env.step(env.expert(True, random.Random(0))[0][1]);"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'rlpost.errors'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_as_a_module_it_ends_politely_at_the_end_of_input() -> None:
    command = [sys.executable, "-m", "rlpost.envs.play", "generalpoints", "--seed", "1"]
    done = subprocess.run(command, input="?\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Thank you for playing: solved 0 of 1, 0 points.\n")
