"""`algo.reward_function`: what it may change, what ends the run, what is recorded, and the example of the docs."""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpost import run
from rlpost.config.schema import Config
from rlpost.errors import ConfigError, RolloutError
from rlpost.record import jsonl
from rlpost.record.metrics import rollout_metrics
from rlpost.rollout import reward_function as module
from rlpost.rollout.reward_function import reward_function
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, trajectories, turn

DOCS = Path(__file__).parents[3] / "docs" / "extending.md"
PPO = "experiment=generalpoints_ppo"
Change = Callable[[list[Trajectory]], Any]


def batch() -> list[Trajectory]:
    return [
        episode(turn(reward=-1.0), turn("CORRECT", 5.0), success=True, index=0),
        episode(turn(reward=-1.0), index=1),
        episode(ending=Ending.ENV_ERROR, error="no", index=2),
    ]


def paid(played: Trajectory, *rewards: Any) -> Trajectory:
    pairs = zip(played.turns, rewards, strict=True)
    return replace(played, turns=tuple(replace(turn, reward=reward) for turn, reward in pairs))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Trajectory]]:
    """The batch with the rewards that a function gives it."""

    def score(change: Change, played: Sequence[Trajectory] | None = None, timeout_s: float = 30.0) -> Any:
        cfg = Config()
        cfg.algo.reward_function, cfg.rollout.timeout_s = "judge:rewards", timeout_s
        monkeypatch.setattr(module, "load", lambda reference: change)
        found = reward_function(cfg)
        assert found is not None
        return found(batch() if played is None else list(played))

    return score


def test_without_one_the_environments_rewards_stay() -> None:
    assert reward_function(Config()) is None


def test_both_rewards_are_kept_in_the_record_and_in_the_metrics(scored: Any) -> None:
    found = scored(lambda played: [paid(played[0], 0.25, 0.5), paid(played[1], 2), played[2]])
    assert [[t.reward for t in e.turns] for e in found] == [[0.25, 0.5], [2.0], []]
    assert [[t.env_reward for t in e.turns] for e in found] == [[-1.0, 5.0], [-1.0], []]
    assert [jsonl.from_line(jsonl.to_line(e)) for e in found] == found
    measured = rollout_metrics(found)
    assert (measured["reward"], measured["env_reward"]) == (2.75 / 3, 3.0 / 3)
    assert measured["partly_right"] == rollout_metrics(batch())["partly_right"] == 0
    assert "env_reward" not in rollout_metrics(batch())
    assert b"env_reward" not in b"".join(map(jsonl.to_line, batch()))


@given(played=st.lists(trajectories, max_size=3), reward=st.floats(-1e15, 1e15))
def test_only_rewards_are_other_ones(played: list[Trajectory], reward: float) -> None:
    cfg = Config()
    played = [replace(e, turns=tuple(replace(t, env_reward=None) for t in e.turns)) for e in played]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "load", lambda _: lambda given: [paid(e, *[reward] * len(e.turns)) for e in given]
        )
        cfg.algo.reward_function = "judge:rewards"
        score = reward_function(cfg)
    assert score is not None
    found = score(played)
    assert all(t.reward == reward for e in found for t in e.turns)
    before = [[t.env_reward for t in e.turns] for e in found]
    assert [paid(replace(e), *rewards) for e, rewards in zip(found, before, strict=True)] == [
        replace(e, turns=tuple(replace(t, env_reward=t.reward) for t in e.turns)) for e in played
    ]


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.int64(1), Fraction(1)])
def test_any_real_number_is_a_reward(scored: Any, reward: Any) -> None:
    found = scored(lambda played: [played[0], paid(played[1], reward), played[2]])
    assert type(found[1].turns[0].reward) is float
    assert found[1].turns[0].reward == 1.0


def _first(change: Callable[[Trajectory], Any]) -> Change:
    return lambda played: [change(played[0]), *played[1:]]


def _turn(**fields: Any) -> Change:
    return _first(lambda e: replace(e, turns=(replace(e.turns[0], **fields), *e.turns[1:])))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda played: None, "returned no list of episodes but NoneType"),
        (lambda played: [0.0, 1.0], "returned 2 episodes of 3"),
        (lambda played: [0.0] * 3, r"episode 0 \(instance deal 0\): came back as float"),
        (lambda played: played[::-1], r"episode 0 \(instance deal 0\): its instance was changed"),
        (_first(lambda e: replace(e, success=False)), "episode 0 .*: its success was changed"),
        (_first(lambda e: replace(e, turns=e.turns[:1])), "episode 0 .*: has 1 turns of 2"),
        (_turn(answer_ids=(1,)), "episode 0 .*: answer_ids of turn 0 was changed"),
        (_turn(context_ids=(1,)), "context_ids of turn 0 was changed"),
        (_turn(logprobs=(-1.0, -0.5)), "logprobs of turn 0 was changed"),
        (_turn(policy_version=9), "policy_version of turn 0 was changed"),
        (_turn(env_reward=1.0), "env_reward of turn 0 was changed"),
        (_turn(reward=math.nan), "episode 0 .*: the reward of turn 0 is nan"),
        (_turn(reward=math.inf), "the reward of turn 0 is inf"),
        (_turn(reward=-1e16), "the reward of turn 0 is -1e\\+16: at most 1e\\+15"),
        (_turn(reward=10**5000), "the reward of turn 0 is inf"),
        (_turn(reward=Fraction(-(10**400), 3)), "the reward of turn 0 is -inf"),
        (_first(lambda e: replace(e, turns=None)), "its turns came back as NoneType"),
        (_turn(reward="1"), "the reward of turn 0 is no number but str"),
        (_turn(reward=torch.tensor(1.0)), "the reward of turn 0 is no number but Tensor"),
        (_turn(reward=None), "the reward of turn 0 is no number but NoneType"),
        (_first(lambda e: replace(e, turns=(1, 2))), "context_ids of turn 0 was changed"),
        (lambda played: played[3], r"IndexError: list index out of range \(test_reward_function.py:\d+\)"),
        (lambda played: sys.exit(3), r"called sys.exit\(3\)"),
    ],
)
def test_what_it_must_not_do_ends_the_run_and_names_the_episode(
    scored: Any, change: Change, told: str
) -> None:
    with pytest.raises(RolloutError, match=rf"algo\.reward_function=judge:rewards:? .*{told}"):
        scored(change)


def test_it_has_a_deadline(scored: Any) -> None:
    began = time.monotonic()
    with pytest.raises(RolloutError, match=r"judge:rewards gave no answer within rollout\.timeout_s=0\.2"):
        scored(lambda played: time.sleep(20), timeout_s=0.2)
    assert time.monotonic() - began < 5


def test_the_list_that_it_gets_is_its_own(scored: Any) -> None:
    played = batch()

    def change(given: list[Trajectory]) -> list[Trajectory]:
        found = list(given)
        given.clear()
        return found

    assert len(scored(change, played)) == 3


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run.prepare([PPO, *words])
    return str(caught.value)


class TestSettings:
    @pytest.fixture(autouse=True)
    def _judge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "judge_of_tests.py").write_text(
            "class Judge:\n    def __init__(self, episodes=()): pass\n    def __call__(self, episodes): pass\n"
            "judge = Judge()\ndef rewards(episodes): return episodes\ndef two(a, b): pass\nthree = 3\n"
        )
        (tmp_path / "judge_that_raises.py").write_text("1 // 0\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            ("judge_of_tests", "it is not of the form module:name"),
            ("no_such_judge:rewards", "ModuleNotFoundError"),
            ("judge_of_tests:gone", "has no attribute 'gone'"),
            ("judge_that_raises:rewards", r"ZeroDivisionError: .* \(judge_that_raises.py:1\)"),
            ("judge_of_tests:Judge", "is no function but a class"),
            ("judge_of_tests:three", "is no function but of type int"),
            (
                "judge_of_tests:two",
                "cannot be called with a list of episodes: missing a required argument: 'b'",
            ),
            ("os:system", "of Python's standard library"),
        ],
    )
    @pytest.mark.parametrize("task", ["rl", "compare", "dry_run"])
    def test_what_cannot_be_called_is_refused_at_the_start(self, task: str, value: str, told: str) -> None:
        text = refused(f"task={task}", f"algo.reward_function={value}")
        assert re.search(rf"algo\.reward_function={value}\n  reason: .*{told}.*\n  remedy: ", text)

    def test_a_function_and_an_object_that_is_called_are_taken(self) -> None:
        for name in ("judge", "rewards"):
            cfg = run.prepare([PPO, f"algo.reward_function=judge_of_tests:{name}"])
            assert reward_function(cfg) is not None

    @pytest.mark.parametrize("task", ["sft", "eval"])
    def test_it_is_refused_where_nothing_learns_from_rewards(self, task: str) -> None:
        text = refused(f"task={task}", "algo.reward_function=judge_of_tests:judge")
        assert (
            "algo.reward_function=judge_of_tests:judge\n  reason: nothing reads it: only task=rl learns"
            in text
        )


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (
        DOCS.read_text(encoding="utf-8").partition("## A reward model or a judge\n")[2].partition("\n## ")[0]
    )
    blocks = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (tmp_path / blocks[0].partition("\n")[0].removeprefix("# ")).write_text(blocks[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    words = shlex.split(blocks[1])
    assert words[:3] == ["python", "-m", "rlpost.run"]
    score = reward_function(run.prepare(words[3:]))
    assert score is not None
    long = episode(turn(reward=-1.0, answer="x" * 200), index=3)
    assert [e.total_reward for e in score([*batch(), long])] == [4.5, -0.5, 0.0, -1.0]
    monkeypatch.delitem(sys.modules, "judge")
