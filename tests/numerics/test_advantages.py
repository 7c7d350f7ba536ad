"""GAE against hand-computed numbers, a brute-force sum and the property that feedback tokens do not exist."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.algorithms.advantages import (
    DEVIATION_FLOOR,
    EQUAL_WITHIN,
    discounted_sums,
    explained_variance,
    flat,
    gae,
    group_centred,
    group_normalized,
    leave_one_out,
    moments,
    whiten,
)


def _brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, written out, for one episode of sampled tokens."""
    count = len(rewards)
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < count else 0.0) - values[t] for t in range(count)
    ]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]


def test_style_guide_example() -> None:
    """Mask 1 1 0 0 0 1 1, reward 1 at the end, values 0.5: 0.183 and 0.273 (not -0.065 and -0.017)."""
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1]])
    rewards = torch.tensor([[0, 0, 0, 0, 0, 0, 1.0]])
    advantages, returns = gae(rewards, torch.full((1, 7), 0.5), mask, 0.9, 0.95)
    # by hand: 0.5; -0.05 + 0.855 * 0.5 = 0.3775; -0.05 + 0.855 * 0.3775 = 0.2728; -0.05 + 0.855 * 0.2728 = 0.1832
    expected = torch.tensor([[0.18321, 0.27276, 0, 0, 0, 0.37750, 0.50000]])
    torch.testing.assert_close(advantages, expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(returns, expected + 0.5 * mask, rtol=0, atol=5e-5)


episodes = st.lists(st.tuples(st.booleans(), st.floats(-5, 5), st.floats(-5, 5)), min_size=0, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(episodes, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1), st.randoms())
def test_feedback_tokens_do_not_matter(
    batch: list[list[tuple[bool, float, float]]], gamma: float, lam: float, noise: random.Random
) -> None:
    """Whatever their number and values, each sampled token gets the brute-force advantage."""
    longest = max(len(episode) for episode in batch)
    mask, rewards, values = (torch.zeros(len(batch), longest, dtype=torch.float64) for _ in range(3))
    for b, episode in enumerate(batch):
        for t, (sampled, reward, value) in enumerate(episode):
            mask[b, t] = float(sampled)
            rewards[b, t] = reward if sampled else 0.0
            values[b, t] = value if sampled else noise.uniform(-100, 100)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, episode in enumerate(batch):
        kept = [(r, v) for sampled, r, v in episode if sampled]
        expected = torch.tensor(_brute_force([r for r, _ in kept], [v for _, v in kept], gamma, lam))
        found = advantages[b][mask[b].bool()]
        torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
        kept_values = torch.tensor([v for _, v in kept], dtype=torch.float64)
        torch.testing.assert_close(returns[b][mask[b].bool()], found + kept_values)
    assert not advantages[mask == 0].any()
    assert not returns[mask == 0].any()


def test_gamma_and_lambda_one_is_return_minus_value() -> None:
    rewards = torch.tensor([[0.0, -1.0, 0.0, 0.0, 5.0]])
    values = torch.tensor([[0.1, 0.2, 9.0, 0.4, 0.5]])
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[3.9, 3.8, 0.0, 4.6, 4.5]]))
    torch.testing.assert_close(returns, torch.tensor([[4.0, 4.0, 0.0, 5.0, 5.0]]))


def test_reward_on_an_environment_token_is_refused() -> None:
    with pytest.raises(ValueError, match="not sampled"):
        gae(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[0, 1]]), 1.0, 1.0)


def test_whitening_by_the_batch_moments_is_shard_invariant() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    mean, variance = moments(values)
    assert (mean.item(), variance.item()) == (3.0, 3.5)
    whole = whiten(values, mean, variance)
    torch.testing.assert_close(whole, (values - 3.0) / 3.5**0.5)
    shards = torch.cat([whiten(values[:1], mean, variance), whiten(values[1:], mean, variance)])
    assert torch.equal(whole, shards)
    assert not torch.allclose(whole[1:], whiten(values[1:], *moments(values[1:])), atol=0.1)


def test_whitening_equal_values_gives_zeros() -> None:
    values = torch.full((3,), 2.0)
    assert torch.equal(whiten(values, *moments(values)), torch.zeros(3))


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 2.0, 4.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns).item() == 0.0
    # residuals 0 1 2 have variance 2/3, returns 8/3: 1 - 1/4
    assert explained_variance(torch.tensor([0.0, 1.0, 2.0]), returns).item() == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.97, 1.0])
def test_the_scan_is_the_loop(length: int, factor: float) -> None:
    values = torch.randn(3, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    expected, carried = torch.empty_like(values), torch.zeros(3, dtype=torch.float64)
    for s in reversed(range(length)):
        carried = values[:, s] + factor * carried
        expected[:, s] = carried
    torch.testing.assert_close(discounted_sums(values, factor), expected, rtol=1e-12, atol=1e-12)


def test_the_scan_is_accurate_over_long_rows() -> None:
    """float32 over 5,000 tokens, against the loop in float64; and gamma = lambda = 1 loses nothing."""
    values = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 0.999):
        expected, carried = torch.empty(2, 5000, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for s in reversed(range(5000)):
            carried = values[:, s].double() + factor * carried
            expected[:, s] = carried
        torch.testing.assert_close(discounted_sums(values, factor).double(), expected, rtol=1e-5, atol=1e-4)


SCORES = torch.tensor([1.0, 5.0, 3.0, 3.0, 2.0, 7.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 1, 0, 1, 0, 2])  # {1, 3, 2}, {5, 3}, {7}


def test_group_baselines_by_hand() -> None:
    """Means 2, 4, 7; sample deviations 1, sqrt 2; others' means 2.5, 1.5, 2 and 3, 5; a group of one gets 0."""
    expected = torch.tensor([-1.0, 1.0, 1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(group_centred(SCORES, GROUPS), expected)
    deviations = torch.tensor([1, 2**0.5, 1, 2**0.5, 1, 1], dtype=torch.float64) + DEVIATION_FLOOR
    torch.testing.assert_close(group_normalized(SCORES, GROUPS), expected / deviations)
    others = torch.tensor([1 - 2.5, 5 - 3, 3 - 1.5, 3 - 5, 2 - 2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(SCORES, GROUPS), others)
    assert flat(SCORES, GROUPS).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("baseline", [group_centred, group_normalized, leave_one_out])
def test_equal_scores_are_worth_exactly_nothing(baseline) -> None:
    """0.1 three times: its sum over three is not 0.1 in floating point, and still no advantage remains."""
    scores = torch.full((7,), 0.1)
    assert not baseline(scores, torch.tensor([0, 0, 0, 1, 1, 2, 2])).any()


EQUAL = [0.1, 1 / 3, -0.2, 1e6]
SIZES = range(2, 65)


def _nearly(value: float, count: int) -> torch.Tensor:
    """`count` times `value` in float32, as rounding leaves it: equal, or some units in the last place apart."""
    ulps = torch.arange(count) % 4 * torch.finfo(torch.float32).eps
    return torch.full((count,), value) * (1 + ulps)


@pytest.mark.parametrize("make", [lambda value, n: torch.full((n,), value), _nearly])
@pytest.mark.parametrize("value", EQUAL)
def test_equal_values_never_become_advantages(value: float, make) -> None:
    """In groups of 2 to 64, float32 and the float64 that credit sums in; nothing is left of them, whitened or not."""
    for count in SIZES:
        scores, groups = make(value, count), torch.zeros(count, dtype=torch.long)
        for baseline in (group_centred, group_normalized, leave_one_out):
            assert not baseline(scores, groups).any()
            assert not baseline(scores.double(), groups).any()
        assert not whiten(scores, *moments(scores)).any()
        assert explained_variance(torch.zeros(count), scores).item() == 0.0
        values = scores.repeat(37)  # as many tokens repeat an episode's advantage
        assert not whiten(values, *moments(values)).any()


@pytest.mark.parametrize("value", EQUAL)
def test_values_that_differ_in_earnest_keep_unit_variance(value: float) -> None:
    """A hundred times what counts as equal: a deviation of 1 remains."""
    values = torch.tensor([value, value * (1 + 100 * EQUAL_WITHIN)])
    if abs(value) > 1:  # below, the floors of the variance are of the size of such a difference
        assert whiten(values, *moments(values)).abs().tolist() == pytest.approx([1, 1], rel=1e-3)
    assert not flat(values, torch.zeros(2, dtype=torch.long)).any()
    assert whiten(values, *moments(values)).abs().min() > 0
