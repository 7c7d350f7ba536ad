"""What a replay names: the first figure, token or tensor that differs in a bit, and nothing where all are equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpost.record.replayed import first_figure, first_token
from rlpost.types import Ending, Trajectory
from rlpost.weights.equality import first_tensor
from tests.unit.episodes import episode, trajectories, turn


def test_figures_are_equal_or_the_first_that_differs_is_named() -> None:
    line = {"stage": "rl", "iteration": 3, "loss": 0.1, "kl": None, "seconds/total": 3.0}
    assert first_figure(line, {"loss": 0.1, "kl": float("nan"), "new": 1.0}) == (None, 2)
    difference, _ = first_figure(line, {"kl": 0.5, "loss": 0.1 + 2**-50})
    assert difference is not None
    assert difference.startswith("loss is 0.1 on record, 0.1000000000000009 now (by 8.88e-16)")
    assert first_figure(line, {"loss": 0.1, "kl": 0.5})[0] == "kl is None on record, 0.5 now"


@given(st.lists(trajectories, max_size=3))
def test_episodes_are_equal_to_themselves(episodes: list[Trajectory]) -> None:
    assert first_token(episodes, list(episodes)) is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answer_ids": (0, 5)}, "turn 1, sampled token 1: 1 on record, 5 now"),
        ({"answer_ids": (0,), "logprobs": (-0.5,)}, "turn 1, sampled token 1: 1 on record, none now"),
        ({"context_ids": (7, 8, 9, 4)}, "turn 1, environment's token 3: none on record, 4 now"),
        ({"logprobs": (-0.5, -0.25)}, "turn 1, log-prob 1: -0.5 on record, -0.25 now"),
        ({"env_reward": 2.0}, "turn 1, reward 0: -1.0 on record, 2.0 now"),
        ({"outcome": "CORRECT"}, "turn 1, outcome 0: WRONG_VALUE on record, CORRECT now"),
    ],
)
def test_the_first_token_that_differs_is_named(changed: dict[str, Any], named: str) -> None:
    then = [episode(turn(), turn(), index=i) for i in range(3)]
    now = [then[0], *(replace(t, turns=(t.turns[0], replace(t.turns[1], **changed))) for t in then[1:])]
    assert first_token(then, now) == f"episode 1 (group 1, faces_10, instance deal 1): {named}"


def test_a_reward_function_is_not_taken_for_the_environment() -> None:
    now = episode(turn(reward=-1.0))
    then = replace(now, turns=(replace(now.turns[0], reward=7.0, env_reward=-1.0),))
    assert first_token([then], [now]) is None


def test_episodes_that_end_in_another_way_differ() -> None:
    then = episode(turn(), turn())
    assert "turns: 2 on record, 1 now" in str(first_token([then], [episode(turn())]))
    late = replace(then, ending=Ending.ENV_TIMEOUT)
    assert "ending: terminated on record, env_timeout now" in str(first_token([then], [late]))


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]), st.integers(0, 5))
def test_equal_tensors_are_equal_whatever_they_hold(dtype: torch.dtype, size: int) -> None:
    held = {
        "a": torch.arange(size).to(dtype),
        "b": torch.tensor(1.5).to(dtype),
        "nan": torch.tensor(torch.nan),
    }
    assert first_tensor(held, {name: tensor.clone() for name, tensor in held.items()}) is None


def test_the_first_tensor_that_differs_is_named_with_how_far() -> None:
    then = {"z": torch.zeros(3), "a": torch.tensor([1.0, 2.0, 3.0])}
    assert (
        first_tensor(then, {"a": torch.zeros(3), "z": torch.zeros(3)})
        == "a differs in 3 of 3 values, by 3 at most"
    )
    assert first_tensor(then, {**then, "z": torch.tensor([0.0, 0.0, 0.5])}) == (
        "z differs in 1 of 3 values, by 0.5 at most"
    )
    assert "-0" not in str(first_tensor({"z": torch.tensor(0.0)}, {"z": torch.tensor(-0.0)}))
    assert first_tensor({"z": torch.tensor(0.0)}, {"z": torch.tensor(-0.0)}) is not None, "a sign is a bit"
    assert first_tensor(then, {"z": torch.zeros(3)}) == "a is on record alone"
    assert first_tensor({"z": torch.zeros(3)}, then) == "a is not on record"
    assert "torch.float64 (3,) now" in str(first_tensor(then, {**then, "z": torch.zeros(3).double()}))
