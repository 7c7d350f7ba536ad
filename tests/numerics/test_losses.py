"""PPO's losses, the KL estimators and shaped rewards against numbers by hand and a token-by-token rewriting."""

from __future__ import annotations

import math

import pytest
import torch

from rlpost.algorithms import losses, rewards


def _log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _random(seed: int, n: int = 40) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.0 with clip 0.2: terms 1.2, -0.8, -3 (not -2.4), 1 (not 1.6), 4."""
    old = _log(0.2, 0.4, 0.2, 0.4, 0.3)
    new = _log(0.3, 0.2, 0.3, 0.2, 0.3)
    advantages = torch.tensor([1.0, -1.0, -2.0, 2.0, 4.0], dtype=torch.float64)
    loss, metrics = losses.policy_loss(new, old, advantages, 0.2, denominator=10)
    assert loss.item() == pytest.approx(-(1.2 - 0.8 - 3.0 + 1.0 + 4.0) / 10)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 10)
    assert metrics["ratio_max"].item() == pytest.approx(1.5)
    k3 = 2 * (1.5 - 1 - math.log(1.5)) + 2 * (0.5 - 1 - math.log(0.5))
    assert metrics["approx_kl"].item() == pytest.approx(k3 / 10)


def test_policy_loss_and_gradient_token_by_token() -> None:
    new, old, advantages = (0.3 * _random(0)).requires_grad_(), 0.3 * _random(1), _random(2)
    losses.policy_loss(new, old, advantages, 0.2, 7)[0].backward()
    total, slopes = 0.0, []
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(n - o)
        bounded = 1.2 if ratio > 1.2 else 0.8 if ratio < 0.8 else ratio
        total += min(ratio * a, bounded * a)
        flat = (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
        slopes.append(0.0 if flat else -ratio * a / 7)
    assert losses.policy_loss(new, old, advantages, 0.2, 7)[0].item() == pytest.approx(-total / 7)
    torch.testing.assert_close(new.grad, torch.tensor(slopes, dtype=torch.float64))


def test_value_loss_by_hand() -> None:
    """Old 0, clip 0.5. Value 1 to return 1: clipped to 0.5, (0.5)^2 counts. Value 1 to return 0: 1 counts."""
    values = torch.tensor([1.0, 1.0, 0.2, -2.0])
    returns = torch.tensor([1.0, 0.0, 1.2, -2.0])
    loss, metrics = losses.value_loss(values, torch.zeros(4), returns, 0.5, denominator=4)
    assert loss.item() == pytest.approx(0.5 * (0.25 + 1.0 + 1.0 + 2.25) / 4)
    assert metrics["value_clip_fraction"].item() == pytest.approx(2 / 4)


def test_value_loss_token_by_token() -> None:
    values, old, returns = _random(3).requires_grad_(), _random(4), _random(5)
    total = 0.0
    for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        near = min(max(v, o - 0.5), o + 0.5)
        total += max((v - r) ** 2, (near - r) ** 2) / 2
    loss, _ = losses.value_loss(values, old, returns, 0.5, 3)
    assert loss.item() == pytest.approx(total / 3)


def test_kl_estimators_by_hand() -> None:
    p, q = _log(0.5), _log(0.25)
    assert losses.kl_k1(p, q).item() == pytest.approx(math.log(2))
    assert losses.kl_k2(p, q).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert losses.kl_k3(p, q).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_have_the_divergence_as_their_mean() -> None:
    p = torch.softmax(_random(6, 8), dim=0)
    q = torch.softmax(_random(7, 8), dim=0)
    exact = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    for estimator in (losses.kl_k1, losses.kl_k3):
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(exact)
    assert (losses.kl_k3(p.log(), q.log()) >= 0).all()


def test_k3_in_the_loss_has_the_slope_of_its_formula() -> None:
    """d/dlogp (q/p - 1 - log(q/p)) = 1 - q/p."""
    p = _log(0.5, 0.1).requires_grad_()
    losses.kl_penalty(p, _log(0.25, 0.2), 2)[0].backward()
    torch.testing.assert_close(p.grad, torch.tensor([1 - 0.5, 1 - 2.0], dtype=torch.float64) / 2)


def test_entropy_and_sft_are_means_over_the_denominator() -> None:
    assert losses.entropy_bonus(torch.tensor([1.0, 2.0]), 4)[0].item() == pytest.approx(0.75)
    assert losses.sft_loss(_log(0.5, 0.25), 2)[0].item() == pytest.approx(1.5 * math.log(2))


def test_losses_add_up_over_shards_only_with_the_batch_denominator() -> None:
    new, old, advantages = 0.3 * _random(0), 0.3 * _random(1), _random(2)
    whole = losses.policy_loss(new, old, advantages, 0.2, 40)[0]
    parts = [slice(0, 5), slice(5, 40)]
    shards = sum(losses.policy_loss(new[p], old[p], advantages[p], 0.2, 40)[0] for p in parts)
    wrong = sum(losses.policy_loss(new[p], old[p], advantages[p], 0.2, len(new[p]))[0] for p in parts) / 2
    torch.testing.assert_close(whole, shards)
    assert abs(whole.item() - float(wrong)) > 1e-3


def test_rewards_are_scaled_and_pay_for_divergence() -> None:
    earned, _ = rewards.scaled(torch.tensor([0.0, 5.0], dtype=torch.float64), 0.2)
    shaped, metrics = rewards.less_kl(earned, _log(0.5, 0.2), _log(0.25, 0.4), 0.1)
    expected = torch.tensor([-0.1 * math.log(2), 1.0 + 0.1 * math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(shaped, expected)
    assert metrics["kl_reward_mean"].item() == pytest.approx(0.0)


def test_empty_shard_costs_nothing() -> None:
    none = torch.zeros(0, requires_grad=True)
    loss, metrics = losses.policy_loss(none, none.detach(), none.detach(), 0.2, 5)
    assert loss.item() == 0.0
    assert metrics["ratio_max"].item() == 0.0
