from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlpost.envs.navigation.env import Navigation
from rlpost.envs.play import main


def _play(monkeypatch: pytest.MonkeyPatch, lines: list[str], *argv: str) -> int:
    typed = iter(lines)

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    return main(["navigation", "--seed", "3", *argv])


def test_a_walk_by_hints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    env = Navigation()
    env.reset(seed=3, options={"variant": "relative", "split": "all"})
    words = []
    over = False
    while not over:
        action = str(env.session.now.action)
        short = {"forward()": "f", "stop()": "s"}
        words.append(short[action] if action in short else action.partition("(")[2].rstrip(")"))
        over = env.step(env.read_line(words[-1]))[2]
    picture = tmp_path / "walk.svg"
    assert _play(monkeypatch, ["?", "up", *words], "--variant", "relative", "--picture", str(picture)) == 0
    shown = capsys.readouterr().out
    assert "ILLEGAL_ACTION (-1)" in shown
    assert "ARRIVED (+1): you have arrived." in shown
    assert f"solved 1 of 1, {len(words) - 1} points" in shown
    assert picture.read_text().startswith("<svg")
    assert list(tmp_path.iterdir()) == [picture]


def test_free_walks_and_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _play(monkeypatch, ["s"], "--arg", "movement=free", "--arg", "max_legs=1") == 0
    assert "STOPPED_SHORT (-1)" in capsys.readouterr().out
    assert _play(monkeypatch, [], "--arg", "movement=free", "--compat") == 2
    assert "use movement='rail'" in capsys.readouterr().err


def test_a_person_in_compat_is_graded_by_the_published_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _play(monkeypatch, ["s", "s", "s"], "--compat") == 0
    shown = capsys.readouterr().out
    assert "WRONG_ACTION (-1): You failed this trial because the action is incorrect" in shown
    assert "STEP_LIMIT (-1)" in shown


def test_games_without_pictures_say_so() -> None:
    with pytest.raises(SystemExit, match="GeneralPoints has no picture"):
        main(["generalpoints", "--picture", "x.svg"])


def test_walking_and_drawing_import_nothing_heavy() -> None:
    code = (
        "import sys, random; from rlpost.envs import play, registry; env = registry.make('navigation');"
        "env.reset(seed=0); env.step(env.expert(True, random.Random(0))[0][1]); env.picture();"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'matplotlib', 'rlpost.errors'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
