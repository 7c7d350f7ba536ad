"""The author's check passes good environments and finds each kind of fault in bad ones."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Text

from rlpost.envs import check, registry
from rlpost.envs.generalpoints.variants import Variant

ASCII = frozenset(map(chr, range(32, 127)))


OPEN: list[Any] = []


class Echo(gymnasium.Env[str, str]):
    """Say the number that is shown. Faults are switched on by name."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.rows = sqlite3.connect(":memory:")
        OPEN.append(self)
        self.observation_space = Text(100, charset=ASCII)
        self.action_space = Text(100, min_length=0, charset=ASCII)
        self.number = 0
        self.dice = random.Random()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "main thread":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self.fault == "loop":
            asyncio.get_event_loop()
        if self.fault == "exits":
            raise SystemExit("bye")
        self.rows.execute("select 1")
        if seed is not None and self.fault != "unseeded":
            self.dice = random.Random(seed)
        parity = {"train": 0, "eval": 1}.get((options or {}).get("split", "all"))
        number = self.dice.randrange(10**6)
        if parity is not None and self.fault != "overlap":
            number = 2 * number + parity
        self.number = 7 if self.fault == "overlap" else number
        difficulty = {"list": [1], "no number": float("nan")}.get(self.fault, 1)
        return f"say {self.number}", {"instance": str(self.number), "difficulty": difficulty}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.fault == "raises" and "{" in action:
            raise KeyError("brace")
        success = action == str(self.number)
        feedback = "\u2603" if self.fault == "foreign" and not success else "done"
        reward = {"nan": float("nan"), "huge": 1e16}.get(self.fault, float(success))
        info = {"outcome": "no\nname" if self.fault == "outcome" else "SAID", "success": success}
        return feedback, reward, True, False, info | ({"parts": [1.0]} if self.fault == "parts" else {})

    def close(self) -> None:
        self.rows.close()  # an error in another thread
        if self in OPEN:  # Gymnasium's checker closes twice
            OPEN.remove(self)
        if self.fault == "close":
            raise RuntimeError("will not")

    def expert(self, revision: bool, rng: random.Random) -> list[tuple[str, str, bool]]:
        answer = "?" if self.fault == "expert" else str(self.number)
        return [(f"say {self.number}", answer, True)]


VARIANTS = {"plain": Variant("plain", (10, 10, 10), False, "as it is")}


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    OPEN.clear()
    entry = registry.Entry(f"{__name__}:Echo", f"{__name__}:VARIANTS", "say it")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setitem(registry.ENTRIES, "echo", entry)


def _failed(fault: str) -> dict[str, str]:
    found = list(check.findings(check.Subject("echo", {"fault": fault}, 5)))
    assert len(found) == 1 + len(check.EACH_VARIANT)  # one variant
    return {each.check: each.told for each in found if not each.passed}


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    ("fault", "where", "told"),
    [
        ("raises", "hostile text", "KeyError at test_check.py"),
        ("foreign", "hostile text", "not of the observation space"),
        ("nan", "hostile text", "the reward is nan"),
        ("huge", "hostile text", "at most 1e+15 can be learnt from"),
        ("parts", "hostile text", "has parts of type list"),
        ("outcome", "hostile text", "is no name"),
        ("list", "seeds", "info['difficulty'] is no word and no number but list"),
        ("no number", "seeds", "info['difficulty'] is nan, and no finite number"),
        ("expert", "expert", "SAID (+0) for the expert's '?'"),
        ("unseeded", "seeds", "seed 0 differs in a second environment"),
        ("overlap", "splits", "1 instances are both trained on and held out, such as 7"),
        ("overlap", "seeds", "every seed gives the same instance"),
        ("main thread", "timing", "where signals such as signal.alarm do not work"),
        ("loop", "seeds", "RuntimeError at events.py"),
        ("exits", "splits", "SystemExit at test_check.py"),
        ("close", "timing", "RuntimeError at test_check.py"),
    ],
)
def test_faults_are_found(fault: str, where: str, told: str) -> None:
    assert told in _failed(fault)[where]
    assert OPEN == [], "environments are closed, in the thread they were made in"


@pytest.mark.usefixtures("echo")
def test_a_good_environment_passes() -> None:
    assert _failed("") == {}
    assert OPEN == []


def test_navigation_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["navigation", "--instances", "3", "--arg", "max_legs=1"]) == 0
    shown = capsys.readouterr().out
    assert "relative_old_town" in shown
    assert "FAILED" not in shown


def test_a_data_set_without_a_scorer_is_checked_without_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n} + 1 =", "completion": str(n + 1)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert check.main(["dataset", "--instances", "3", "--arg", f"path={tmp_path}/rows.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "none are played" in shown
    assert "1 of 21 rows repeat" in shown
    assert "hostile text" not in shown


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["chess"], "unknown environment 'chess'"),
        (["navigation", "--arg", "legs"], "must be KEY=VALUE"),
        (["navigation", "--arg", "legs=3"], "unknown argument legs"),
    ],
)
def test_what_cannot_be_checked_is_said(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(argv) == 2
    assert told in capsys.readouterr().err


def test_as_a_module_it_says_failure_by_its_exit_code() -> None:
    command = [sys.executable, "-m", "rlpost.envs.check", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "there are generalpoints, navigation" in done.stderr
