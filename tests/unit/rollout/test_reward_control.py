"""`algo.reward_control`: what the controls keep and what they take away, as properties."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.config.schema import Config, RewardControl
from rlpost.record import jsonl
from rlpost.record.metrics import evaluation, rollout_metrics
from rlpost.rollout import reward_function
from rlpost.rollout.dynamic_sampling import is_flat
from rlpost.rollout.reward_control import random_rewards, rewards_to_learn_from, shuffled
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, turn

rewards = st.sampled_from([-3.0, -1.0, 0.25, 1.0, 5.0])  # sums of few are exact
endings = st.sampled_from([Ending.TERMINATED, Ending.TRUNCATED, Ending.ENV_ERROR])


@st.composite
def batches(draw: st.DrawFn) -> list[Trajectory]:
    """Up to 12 episodes of up to 3 turns in groups of 2, some broken, in the order of their numbers."""
    size = draw(st.integers(0, 12))
    played = []
    for index in range(size):
        turns = [turn(reward=draw(rewards)) for _ in range(draw(st.integers(0, 3)))]
        made = episode(*turns, success=draw(st.booleans()), ending=draw(endings), index=index)
        played.append(replace(made, group=index // 2))
    return played


def usable(played: list[Trajectory]) -> list[Trajectory]:
    return [t for t in played if t.turns and not t.ending.broken]


@settings(deadline=None)
@given(batches(), st.integers(0, 99))
def test_shuffling_keeps_the_multiset_of_totals(played: list[Trajectory], seed: int) -> None:
    found = shuffled(played, seed)
    assert Counter(t.total_reward for t in usable(found)) == Counter(t.total_reward for t in usable(played))
    assert all(turn.reward == 0 for t in usable(found) for turn in t.turns[:-1])


@settings(deadline=None)
@given(batches(), st.integers(0, 99), st.sampled_from([shuffled, random_rewards]), st.randoms())
def test_a_control_depends_on_the_episodes_and_not_on_the_order_they_came_in(
    played: list[Trajectory], seed: int, control: type, order: random.Random
) -> None:
    """So it is the same for any number of workers and ranks."""
    mixed = list(played)
    order.shuffle(mixed)
    found = control(played, seed)
    assert sorted(control(mixed, seed), key=lambda t: t.episode) == found == control(played, seed)


@settings(deadline=None)
@given(batches(), st.integers(0, 99), st.sampled_from([shuffled, random_rewards]))
def test_nothing_changes_but_rewards(played: list[Trajectory], seed: int, control: type) -> None:
    found = control(played, seed)
    back = [
        replace(t, turns=tuple(replace(turn, reward=turn.env_reward, env_reward=None) for turn in t.turns))
        for t in found
    ]
    assert back == played
    unpaid = [(a, b) for a, b in zip(played, found, strict=True) if a not in usable(played)]
    assert all([x.reward for x in a.turns] == [x.reward for x in b.turns] for a, b in unpaid)


@settings(deadline=None)
@given(batches(), st.integers(0, 99))
def test_random_rewards_are_one_or_nothing(played: list[Trajectory], seed: int) -> None:
    totals = [t.total_reward for t in usable(random_rewards(played, seed))]
    assert set(totals) <= {0.0, 1.0}
    solved = [t.success for t in usable(played)]
    if solved and (all(solved) or not any(solved)):
        assert totals == [float(solved[0])] * len(solved), "a share of 0 or 1 leaves nothing to chance"


def batch(size: int, solved: int) -> list[Trajectory]:
    return [
        episode(turn(reward=5.0 if index < solved else -1.0), success=index < solved, index=index)
        for index in range(size)
    ]


def test_random_rewards_have_the_batchs_share_of_successes() -> None:
    """600 of 2000: the mean is within four standard errors of 0.3; and the rewards say nothing of success."""
    played = batch(2000, 600)
    found = random_rewards(played, seed=7)
    error = math.sqrt(0.3 * 0.7 / 2000)
    assert abs(sum(t.total_reward for t in found) / 2000 - 0.3) < 4 * error
    paid = [t.total_reward for t in found if t.success]
    assert abs(sum(paid) / 600 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)


def test_shuffled_rewards_say_nothing_of_success() -> None:
    """Of 600 successes of 2000 about 180 are paid as such: within four deviations of the hypergeometric law."""
    found = shuffled(batch(2000, 600), seed=7)
    paid = sum(t.total_reward == 5.0 for t in found if t.success)
    deviation = math.sqrt(600 * 0.3 * 0.7 * (1400 / 1999))
    assert abs(paid - 180) < 4 * deviation


@pytest.mark.parametrize("control", [shuffled, random_rewards])
def test_seeds_iterations_and_rounds_differ(control: type) -> None:
    played = batch(64, 20)
    later = [replace(t, iteration=4) for t in played]
    next_round = [replace(t, episode=t.episode + 64) for t in played]
    totals = [
        [t.total_reward for t in control(given, seed)]
        for given, seed in ((played, 0), (played, 1), (later, 0), (next_round, 0))
    ]
    assert len({tuple(each) for each in totals}) == 4


def test_success_and_the_environments_rewards_stay_in_the_metrics_and_the_record() -> None:
    played = batch(8, 3)
    found = shuffled(played, seed=1)
    before, after = rollout_metrics(played), rollout_metrics(found)
    assert after["success"] == before["success"] == 3 / 8
    assert after["env_reward"] == before["reward"]
    assert evaluation(found)["step_accuracy"] == evaluation(played)["step_accuracy"]
    assert [jsonl.from_line(jsonl.to_line(t)) for t in found] == found


def test_the_users_function_comes_first_and_the_environments_rewards_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def judge(played: list[Trajectory]) -> list[Trajectory]:
        return [replace(t, turns=(replace(t.turns[0], reward=float(t.episode)),)) for t in played]

    monkeypatch.setattr(reward_function, "load", lambda reference: judge)
    cfg = Config()
    cfg.algo.reward_function, cfg.algo.reward_control = "judge:rewards", RewardControl.shuffled
    score = rewards_to_learn_from(cfg)
    assert score is not None
    found = score(batch(6, 2))
    assert sorted(t.total_reward for t in found) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [t.turns[0].env_reward for t in found] == [5.0, 5.0, -1.0, -1.0, -1.0, -1.0]
    cfg.algo.reward_control = RewardControl.none
    score = rewards_to_learn_from(cfg)
    assert score is not None
    assert [t.total_reward for t in score(batch(6, 2))] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    cfg.algo.reward_function = None
    assert rewards_to_learn_from(cfg) is None


def test_dynamic_sampling_sees_the_control() -> None:
    """Two groups, each flat by its own rewards: shuffled over both, some seed makes them varied."""
    played = [replace(t, group=t.episode // 2) for t in batch(4, 2)]
    assert is_flat(played[:2])
    assert is_flat(played[2:])
    assert not all(is_flat(shuffled(played, seed)[:2]) for seed in range(20))
