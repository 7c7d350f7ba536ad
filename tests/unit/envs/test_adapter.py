"""One's own environments by module:class: with variants of their own, or plain Gymnasium ones, adapted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envs import check, registry
from envs.adapter import Adapted
from envs.splits import Split, split_of

PLAIN = """
import gymnasium
from gymnasium.spaces import Discrete, Text


class Sum(gymnasium.Env):
    def __init__(self, largest=99, names=()):
        self.observation_space, self.action_space = Text(50), Text(50, min_length=0)
        self.largest = largest

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.a, self.b = (int(self.np_random.integers(self.largest)) for _ in range(2))
        self.left = 2
        return f"{self.a} plus {self.b}", {}

    def step(self, action):
        self.left -= 1
        right = action == str(self.a + self.b)
        return "no", float(right), right, not right and not self.left, {}


class Declared(Sum):
    variants = [VARIANT]

    def reset(self, *, seed=None, options=None):
        self.options = options
        return super().reset(seed=seed)


class Numbers(Sum):
    def __init__(self):
        super().__init__()
        self.action_space = Discrete(3)


class Stubborn(Sum):
    def __init__(self):
        raise KeyError("no key to the door")


class Misdeclared(Sum):
    variants = ["mine"]


class NoEnvironment:
    pass
"""
VARIANT = "__import__('envs.base').base.PlainVariant('mine', False, 'my rule')"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text = PLAIN.replace("[VARIANT]", f"[{VARIANT}]")
    (tmp_path / "own_module.py").write_text(text.replace('Text(50)', 'Text(50, charset=CHARACTERS)').replace(
        "class Sum", "CHARACTERS = frozenset(map(chr, range(32, 127)))\n\n\nclass Sum"))  # fmt: skip
    (tmp_path / "own_broken.py").write_text("import json\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    return "own_module"


def test_a_plain_environment_gets_instances_splits_and_outcomes(own: str) -> None:
    env = registry.make(f"{own}:Sum", largest=1000)
    assert isinstance(env, Adapted)
    assert [each.name for each in registry.variants(f"{own}:Sum")] == ["default"]
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}
    for split, instances in seen.items():
        for seed in range(20):
            observation, info = env.reset(seed=seed, options={"variant": "default", "split": split})
            assert (observation, info) == env.reset(seed=seed, options={"split": split})
            assert split_of(info["instance"]) is Split(split)
            instances.add(info["instance"])
    registry.refuse_overlap(*seen.values())
    a, b = map(int, observation.split(" plus "))
    _, reward, *over, info = env.step("1x")
    assert (reward, over, info) == (0.0, [False, False], {"success": False, "outcome": "CONTINUED"})
    *_, info = env.step(str(a + b))
    assert info == {"success": True, "outcome": "SUCCESS"}
    env.reset(seed=0)
    env.step("x")
    *_, truncated, info = env.step("x")
    assert (truncated, info["outcome"]) == (True, "FAILURE")


def test_variants_of_ones_own_are_passed_on(own: str) -> None:
    listed: Sequence[Any] = registry.variants(f"{own}:Declared")
    assert [(each.name, each.held_out) for each in listed] == [("mine", False)]
    env = registry.make(f"{own}:Declared")
    assert not isinstance(env, Adapted)
    env.reset(options={"variant": "mine"})
    assert env.unwrapped.options == {"variant": "mine"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:Env", "cannot be imported"),
        ("own_module:Missing", "cannot be imported"),
        ("own_module:NoEnvironment", "is no subclass of gymnasium.Env"),
        ("own_module:Numbers", r"its action space is Discrete\(3\), but must be gymnasium.spaces.Text"),
        ("own_module:Stubborn", r"cannot be made: KeyError: 'no key to the door' \(own_module.py:\d+\)"),
        ("own_module:Misdeclared", "its variants hold 'mine', which has not name, held_out and summary"),
        ("own_broken:Env", r"cannot be imported: ZeroDivisionError: division by zero \(own_broken.py:2\)"),
        (":", "cannot be imported"),
        ("own_module:", "cannot be imported"),
    ],
)
def test_what_is_no_environment_is_refused(own: str, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        registry.make(name)


def test_unknown_arguments_options_and_too_few_instances_are_refused(own: str) -> None:
    with pytest.raises(ValueError, match="unknown argument most; there are: largest, names"):
        registry.make(f"{own}:Sum", most=3)
    env = registry.make(f"{own}:Sum", largest=1)
    with pytest.raises(ValueError, match="this environment has only 'default'"):
        env.reset(options={"variant": "other"})
    other = "eval" if split_of(env.reset(seed=0)[1]["instance"]) is Split.TRAIN else "train"
    with pytest.raises(ValueError, match=f"none of 1000 instances is of split '{other}'"):
        env.reset(options={"split": other})


def test_the_authors_check_takes_it(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([f"{own}:Sum", "--instances", "5", "--arg", "largest=500"]) == 0
    assert "there is none" in capsys.readouterr().out  # no expert
