"""A run that cannot learn is warned about once, after some iterations in a row; one that can is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoConfig, AlgoName
from rlpost.tasks.stall import PATIENCE, Stall
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, turn

LEARNS = {"grad_norm_policy": 0.5}


def batch(*groups: list[float]) -> list[Trajectory]:
    return [
        replace(episode(turn(reward=reward)), group=g) for g, group in enumerate(groups) for reward in group
    ]


FLAT = batch([0.0, 0.0], [1.0, 1.0])
VARIED = batch([0.0, 1.0], [1.0, 1.0])


def said(
    stall: Stall, batches: list[list[Trajectory]], metrics: dict[str, float] = LEARNS
) -> list[str | None]:
    return [stall.see(each, metrics) for each in batches]


@pytest.mark.parametrize("name", [name for name in AlgoName if TABLE[name].grouped])
def test_flat_groups_are_told_once_with_remedies(name: AlgoName) -> None:
    stall = Stall(AlgoConfig(name=name))
    found = said(stall, [FLAT] * 10)
    assert found[: PATIENCE - 1] == [None] * (PATIENCE - 1)
    told = found[PATIENCE - 1]
    assert told is not None
    assert found[PATIENCE:] == [None] * (10 - PATIENCE)
    assert "all episodes of each group earned the same reward (now 0.500 on average)" in told
    assert all(remedy in told for remedy in ("sft.steps", "rollout.group_size", "rollout.temperature"))


@pytest.mark.parametrize(
    "name", [name for name in AlgoName if not (TABLE[name].grouped or TABLE[name].taught)]
)
def test_without_groups_the_whole_batch_must_be_flat(name: AlgoName) -> None:
    """Each episode is a group of its own there, and flat by itself: that is no fault."""
    alone = batch([0.0], [1.0])
    assert said(Stall(AlgoConfig(name=name)), [alone] * 10) == [None] * 10
    assert said(Stall(AlgoConfig(name=name)), [batch([1.0])] * 10) == [None] * 10  # one episode has no equal
    told = said(Stall(AlgoConfig(name=name)), [batch([1.0], [1.0])] * PATIENCE)[-1]
    assert told is not None
    assert "group" not in told


def test_one_iteration_that_teaches_starts_the_count_anew() -> None:
    stall = Stall(AlgoConfig(name=AlgoName.grpo))
    assert said(stall, [FLAT, FLAT, VARIED, FLAT, FLAT, VARIED]) == [None] * 6


def test_broken_episodes_do_not_hide_a_flat_group() -> None:
    broken = replace(episode(ending=Ending.ENV_ERROR, error="no"), group=1)
    assert said(Stall(AlgoConfig(name=AlgoName.grpo)), [[*FLAT, broken]] * PATIENCE)[-1] is not None


def test_a_gradient_of_zero_is_told_and_an_absent_one_is_not() -> None:
    """Absent: only the critic learns."""
    assert said(Stall(AlgoConfig()), [VARIED] * 9, {}) == [None] * 9
    told = said(Stall(AlgoConfig()), [VARIED] * PATIENCE, {"grad_norm_policy": 0.0})[-1]
    assert told is not None
    assert "the policy's gradient was 0" in told


def test_a_teacher_and_expert_answers_teach_whatever_the_rewards() -> None:
    for algo in (AlgoConfig(name=AlgoName.opd), AlgoConfig(name=AlgoName.grpo, expert_coef=0.1)):
        assert said(Stall(algo), [FLAT] * 10) == [None] * 10
