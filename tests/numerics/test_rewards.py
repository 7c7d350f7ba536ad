"""What tokens earn, by hand: length penalty, scale, place, price of divergence; and the steered coefficient."""

from __future__ import annotations

import math

import pytest
import torch

from rlpost.algorithms import rewards
from rlpost.algorithms.adaptive_kl import steered
from rlpost.algorithms.estimators import without_critic
from rlpost.algorithms.layout import TokenLayout
from rlpost.config.presets import Aggregation, Estimator
from rlpost.config.schema import KlEstimator, Rewards

LAYOUT = TokenLayout.of(
    [[2, 1], [3]], [4, 4], [[1, 0], [3]]
)  # the worked example of rlpost.algorithms.layout


def test_layout_by_hand() -> None:
    assert LAYOUT.episodes_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert LAYOUT.turns_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert LAYOUT.opens_N.tolist() == [True, False, True, True, False, False]
    assert LAYOUT.thoughts_N.tolist() == [True, False, False, True, True, True]
    assert LAYOUT.groups_B.tolist() == [0, 0]
    assert LAYOUT.lengths_B.tolist() == [3, 3]
    with pytest.raises(ValueError, match="no sampled token"):
        TokenLayout.of([[2, 0]], [0], [[0, 0]])


def test_samples_of_one_episode_by_hand() -> None:
    """The first episode is two samples, of turns of 2 and 1, and of 2 tokens; the second is one."""
    layout = TokenLayout.of([[2, 1, 2], [3]], [4, 4], [[0, 0, 0], [0]], [[True, False, True], [True]])
    assert layout.samples_N.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert layout.episodes_N.tolist() == [0] * 5 + [1] * 3
    assert layout.lengths_B.tolist() == [5, 3]
    assert LAYOUT.samples_N.tolist() == LAYOUT.episodes_N.tolist()
    weights_N = layout.weights([0, 1], Aggregation.episodes, 10).tolist()
    assert weights_N == pytest.approx([1 / 10] * 5 + [1 / 6] * 3), (
        "an episode weighs as another, whatever its samples"
    )


def test_group_statistics_count_episodes_and_not_samples() -> None:
    """Rewards 1 (an episode of three samples) and 0: the group's mean is 1/2, and not 3/4."""
    layout = TokenLayout.of([[1, 1, 1], [2]], [0, 0], [[0, 0, 0], [0]], [[True, True, True], [True]])
    rewards_N = rewards.placed(torch.tensor([0.0, 0.0, 1.0, 0.0]), layout, Rewards.turn)
    for which, expected in (
        (Estimator.group_centred, [0.5] * 3 + [-0.5] * 2),
        (Estimator.leave_one_out, [1.0] * 3 + [-1.0] * 2),
        (Estimator.group_normalized, [0.5**0.5] * 3 + [-(0.5**0.5)] * 2),
    ):
        found = without_critic(which, rewards_N, layout, 1.0, by_turn=False).advantages_N
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    returned = without_critic(Estimator.returns, rewards_N, layout, 1.0, by_turn=False).advantages_N
    assert returned.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0], (
        "a reward at the end is earned by every sample before it"
    )


def test_weights_by_hand() -> None:
    layout = TokenLayout.of([[2, 1], [3], [2]], [0, 0, 1], [[0, 0], [0], [0]])

    def of(aggregation: Aggregation) -> list[float]:
        return layout.weights([0, 2], aggregation, 10).tolist()

    assert of(Aggregation.tokens) == pytest.approx([1 / 5] * 3 + [0] * 3 + [1 / 5] * 2)
    assert of(Aggregation.turns) == pytest.approx([1 / 6, 1 / 6, 1 / 3, 0, 0, 0, 1 / 6, 1 / 6])
    assert of(Aggregation.episodes) == pytest.approx([1 / 6] * 3 + [0] * 3 + [1 / 4] * 2)
    assert of(Aggregation.constant) == pytest.approx([1 / 20] * 3 + [0] * 3 + [1 / 20] * 2)


def test_overlong_penalty_by_hand() -> None:
    """Limit 20, buffer 4: free up to 16, then a quarter of the price a token, never more than the price."""
    lost = rewards.overlong(torch.tensor([5, 16, 17, 19, 20, 21]), 20, 4, 2.0)
    assert lost.tolist() == pytest.approx([0, 0, -0.5, -1.5, -2.0, -2.0])
    assert not rewards.overlong(torch.tensor([20]), 20, 0, 2.0).any()


def test_rewards_lie_on_last_tokens() -> None:
    earned = torch.tensor([-1.0, 5.0, 2.0])
    assert rewards.placed(earned, LAYOUT, Rewards.turn).tolist() == [0, -1, 5, 0, 0, 2]
    assert rewards.placed(earned, LAYOUT, Rewards.outcome).tolist() == [0, 0, 4, 0, 0, 2]


def test_normalized_rewards_have_totals_of_variance_one() -> None:
    found = rewards.normalized(torch.tensor([-1.0, 5.0, 2.0]), LAYOUT)  # totals 4 and 2: deviation 1
    torch.testing.assert_close(found, torch.tensor([-1.0, 5.0, 2.0]))
    torch.testing.assert_close(
        rewards.normalized(torch.tensor([0.0, 6.0, 0.0]), LAYOUT), torch.tensor([0, 2.0, 0])
    )
    assert not rewards.normalized(torch.zeros(3), LAYOUT).any()


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.2, 1e6])
def test_equal_rewards_have_no_scale_and_stay(value: float) -> None:
    """One turn each, or the same total in two turns, whose sum may be a unit in the last place off."""
    for count in range(1, 65):
        turns = [[1, 1] if i % 2 else [1] for i in range(count)]
        layout = TokenLayout.of(turns, [0] * count, [[0] * len(t) for t in turns])
        earned = torch.tensor([x for t in turns for x in ([0.3 * value, 0.7 * value] if t[1:] else [value])])
        assert torch.equal(rewards.normalized(earned, layout), earned)


@pytest.mark.parametrize(
    ("estimator", "prices"),
    [
        (KlEstimator.k1, [math.log(2), -math.log(2)]),
        (KlEstimator.k2, [math.log(2) ** 2 / 2] * 2),
        (KlEstimator.k3, [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]),
    ],
)
def test_divergence_is_paid_for(estimator: KlEstimator, prices: list[float]) -> None:
    logprobs, reference = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    found = rewards.less_kl(torch.tensor([0.0, 1.0]), logprobs, reference, estimator, 0.1)
    assert found.tolist() == pytest.approx([-0.1 * prices[0], 1.0 - 0.1 * prices[1]])


def test_the_steered_coefficient_by_hand() -> None:
    """Twice the target is an error of 1, bounded to 0.2; a tenth above it counts as it is."""
    assert steered(0.5, 0.02, 0.01, 0.1) == pytest.approx(0.5 * 1.02)
    assert steered(0.5, 0.0, 0.01, 0.1) == pytest.approx(0.5 * 0.98)
    assert steered(0.5, 0.011, 0.01, 0.1) == pytest.approx(0.5 * 1.01)
    assert steered(0.5, 0.01, 0.01, 0.1) == 0.5
