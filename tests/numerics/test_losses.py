"""Losses, ratios and the KL estimators against numbers by hand and a token-by-token rewriting."""

from __future__ import annotations

import math

import pytest
import torch

from rlpost.algorithms import losses
from rlpost.config.presets import Ratio, Surrogate
from rlpost.config.schema import KlEstimator


def _log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _random(seed: int, n: int = 40) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _policy(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    clip: losses.Clip,
    denominator: int,
    surrogate: Surrogate = Surrogate.clipped,
) -> tuple[torch.Tensor, losses.Metrics]:
    weights = torch.full((len(new),), 1.0 / denominator, dtype=new.dtype)
    return losses.policy_loss(new, new - old, advantages, weights, surrogate, clip, denominator)


EVEN = losses.Clip(0.2, 0.2)


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.0 with clip 0.2: terms 1.2, -0.8, -3 (not -2.4), 1 (not 1.6), 4."""
    old = _log(0.2, 0.4, 0.2, 0.4, 0.3)
    new = _log(0.3, 0.2, 0.3, 0.2, 0.3)
    advantages = torch.tensor([1.0, -1.0, -2.0, 2.0, 4.0], dtype=torch.float64)
    loss, metrics = _policy(new, old, advantages, EVEN, 10)
    assert loss.item() == pytest.approx(-(1.2 - 0.8 - 3.0 + 1.0 + 4.0) / 10)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 10)
    assert metrics["ratio_max"].item() == pytest.approx(1.5)
    k3 = 2 * (1.5 - 1 - math.log(1.5)) + 2 * (0.5 - 1 - math.log(0.5))
    assert losses.approx_kl(new, old, 10)["approx_kl"].item() == pytest.approx(k3 / 10)


def test_policy_loss_and_gradient_token_by_token() -> None:
    new, old, advantages = (0.3 * _random(0)).requires_grad_(), 0.3 * _random(1), _random(2)
    _policy(new, old, advantages, EVEN, 7)[0].backward()
    total, slopes = 0.0, []
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(n - o)
        bounded = 1.2 if ratio > 1.2 else 0.8 if ratio < 0.8 else ratio
        total += min(ratio * a, bounded * a)
        still = (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
        slopes.append(0.0 if still else -ratio * a / 7)
    assert _policy(new, old, advantages, EVEN, 7)[0].item() == pytest.approx(-total / 7)
    torch.testing.assert_close(new.grad, torch.tensor(slopes, dtype=torch.float64))


def test_the_clip_has_two_sides_and_a_ceiling() -> None:
    """Ratio 1.5 with A = 1: 1.4 counts under high = 0.4. Ratio 20 with A = -1: -20, or -1.4 above a ceiling of 10."""
    old, new = _log(0.2, 0.01), _log(0.3, 0.2)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert _policy(new, old, advantages, losses.Clip(0.1, 0.4), 1)[0].item() == pytest.approx(-(1.4 - 20))
    capped = losses.Clip(0.1, 0.4, ceiling=10.0)
    assert _policy(new, old, advantages, capped, 1)[0].item() == pytest.approx(-(1.4 - 1.4))


def test_clipped_weights_leave_no_token_without_gradient() -> None:
    """CISPO by hand: ratio 1.5 counts as 1.2, ratio 0.5 as 0.8; the gradient is -weight x A, that of log pi."""
    old, new = _log(0.2, 0.4), _log(0.3, 0.2).requires_grad_()
    advantages = torch.tensor([2.0, -3.0], dtype=torch.float64)
    loss, metrics = _policy(new, old, advantages, EVEN, 1, Surrogate.clipped_weight)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.2 * 2 * math.log(0.3) - 0.8 * 3 * math.log(0.2)))
    torch.testing.assert_close(new.grad, torch.tensor([-2.4, 2.4], dtype=torch.float64))
    assert metrics["clip_fraction"].item() == 2.0


def test_ratios_of_turns_and_episodes_by_hand() -> None:
    """Differences 1, 2 | 4 in two units: sums 3, 3, 4; means 1.5, 1.5, 4; half weight on the first token: 2.5."""
    new, old = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3)
    units = torch.tensor([5, 5, 2])
    assert losses.log_ratios(new, old, units, Ratio.token).tolist() == [1.0, 2.0, 4.0]
    assert losses.log_ratios(new, old, units, Ratio.turn).tolist() == [3.0, 3.0, 4.0]
    assert losses.log_ratios(new, old, units, Ratio.episode).tolist() == [3.0, 3.0, 4.0]
    assert losses.log_ratios(new, old, units, Ratio.episode_mean).tolist() == [1.5, 1.5, 4.0]
    halved = losses.log_ratios(new, old, units, Ratio.turn, torch.tensor([0.5, 1.0, 1.0]))
    assert halved.tolist() == [2.5, 2.5, 4.0]


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


def test_gradients_of_the_penalty() -> None:
    """k3: 1 - q/p. k2: log p - log q. Each over the weights."""
    half = torch.full((2,), 0.5, dtype=torch.float64)
    for estimator, slopes in (
        (KlEstimator.k3, [1 - 0.5, 1 - 2.0]),
        (KlEstimator.k2, [math.log(2), -math.log(2)]),
    ):
        p = _log(0.5, 0.1).requires_grad_()
        losses.kl_penalty(p, _log(0.25, 0.2), half, estimator, 2)[0].backward()
        torch.testing.assert_close(p.grad, torch.tensor(slopes, dtype=torch.float64) / 2)


@pytest.mark.parametrize("estimator", list(KlEstimator))
def test_which_divergence_an_estimators_gradient_is_of(estimator: KlEstimator) -> None:
    """Over all tokens, weighted by their probability: k1's expected gradient is 0, k2's that of KL(p || q), k3's
    that of KL(q || p). This is why k1 is refused in the loss."""
    logits, reference = _random(6, 8).requires_grad_(), torch.log_softmax(_random(7, 8), 0)

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    logprobs = torch.log_softmax(logits, 0)
    drawn = (logprobs.exp().detach() * losses.KL_ESTIMATORS[estimator](logprobs, reference)).sum()
    logprobs = torch.log_softmax(logits, 0)
    ours = (logprobs.exp() * (logprobs - reference)).sum()
    theirs = (reference.exp() * (reference - logprobs)).sum()
    zero = torch.zeros(8, dtype=torch.float64)
    expected = {KlEstimator.k1: zero, KlEstimator.k2: slope(ours), KlEstimator.k3: slope(theirs)}
    torch.testing.assert_close(slope(drawn), expected[estimator])
    assert not torch.allclose(expected[KlEstimator.k2], expected[KlEstimator.k3], atol=1e-3)


def test_k1_in_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="no gradient but noise"):
        losses.kl_penalty(_log(0.5), _log(0.5), torch.ones(1), KlEstimator.k1, 1)


def test_entropy_and_sft_are_means_over_the_denominator() -> None:
    bonus, metrics = losses.entropy_bonus(torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.5]), 4)
    assert bonus.item() == pytest.approx(1.25)
    assert metrics["entropy"].item() == pytest.approx(0.75)
    assert losses.sft_loss(_log(0.5, 0.25), 2)[0].item() == pytest.approx(1.5 * math.log(2))


def test_losses_add_up_over_shards_only_with_the_batch_denominator() -> None:
    new, old, advantages = 0.3 * _random(0), 0.3 * _random(1), _random(2)
    whole = _policy(new, old, advantages, EVEN, 40)[0]
    parts = [slice(0, 5), slice(5, 40)]
    shards = sum(_policy(new[p], old[p], advantages[p], EVEN, 40)[0] for p in parts)
    wrong = sum(_policy(new[p], old[p], advantages[p], EVEN, len(new[p]))[0] for p in parts) / 2
    torch.testing.assert_close(whole, shards)
    assert abs(whole.item() - float(wrong)) > 1e-3


@pytest.mark.parametrize("ratio", list(Ratio))
def test_empty_shard_costs_nothing(ratio: Ratio) -> None:
    none = torch.zeros(0, requires_grad=True)
    log_ratio = losses.log_ratios(none, none.detach(), torch.zeros(0, dtype=torch.long), ratio)
    empty = none.detach()
    loss, metrics = losses.policy_loss(none, log_ratio, empty, empty, Surrogate.clipped, EVEN, 5)
    loss.backward()
    assert loss.item() == 0.0
    assert metrics["ratio_max"].item() == 0.0
    assert none.grad is not None


FAR = [-100.0, 89.0, 100.0]  # log ratios that exp overflows at, or nearly vanishes at, in float32


@pytest.mark.parametrize("ceiling", [None, 10.0])
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("surrogate", list(Surrogate))
@pytest.mark.parametrize("ratio", list(Ratio))
def test_far_ratios_have_finite_losses_and_gradients(
    ratio: Ratio, surrogate: Surrogate, advantage: float, far: float, ceiling: float | None
) -> None:
    """One unit of two tokens, float32. Where the clipped term counts, no gradient comes through the ratio."""
    share = 1.0 if ratio in (Ratio.token, Ratio.episode_mean) else 0.5
    new = torch.full((2,), far * share).requires_grad_()
    log_ratio = losses.log_ratios(new, torch.zeros(2), torch.zeros(2, dtype=torch.long), ratio)
    assert log_ratio.tolist() == [far, far]
    weights, advantages = torch.full((2,), 0.5), torch.full((2,), advantage)
    clip = losses.Clip(0.2, 0.2, ceiling)
    loss, metrics = losses.policy_loss(new, log_ratio, advantages, weights, surrogate, clip, 2)
    loss.backward()
    assert new.grad is not None
    assert torch.isfinite(torch.stack([loss.detach(), *metrics.values()])).all()
    assert torch.isfinite(new.grad).all()
    bound = 1.2 if far > 0 else 0.8
    if surrogate is Surrogate.clipped_weight:
        assert loss.item() == pytest.approx(-bound * advantage * far * share)
        assert new.grad.tolist() == pytest.approx([-bound * advantage / 2] * 2)
    elif advantage * far > 0 or (ceiling is not None and far > 0) or advantage == 0:
        assert loss.item() == pytest.approx(-bound * advantage)
        assert not new.grad.any()
    else:  # the plain ratio counts: nothing, or the largest there is
        assert loss.item() == pytest.approx(-advantage * math.exp(min(far, losses.LOG_RATIO_LIMIT)))
        assert not new.grad.any() or far < 0


@pytest.mark.parametrize("estimator", list(KlEstimator))
@pytest.mark.parametrize("far", FAR)
def test_far_divergences_are_finite_and_pull_back(estimator: KlEstimator, far: float) -> None:
    """`far` is log p - log q: minimising the penalty brings p back to q, from either side."""
    logprobs = torch.tensor([far]).requires_grad_()
    penalty = losses.KL_ESTIMATORS[estimator](logprobs, torch.zeros(1))
    penalty.backward()
    assert logprobs.grad is not None
    assert torch.isfinite(penalty)
    assert torch.isfinite(logprobs.grad).all()
    assert estimator is KlEstimator.k1 or logprobs.grad.sign().item() == math.copysign(1, far)
    assert torch.isfinite(losses.approx_kl(logprobs, torch.zeros(1), 1)["approx_kl"])


def test_ratios_up_to_the_limit_are_exps_own() -> None:
    near = torch.linspace(-30, losses.LOG_RATIO_LIMIT, 101).requires_grad_()
    found, exact = losses.ratios(near), near.exp()
    assert torch.equal(found, exact)
    k3 = losses.kl_k3(torch.zeros(101), near)
    assert torch.equal(k3, torch.expm1(near) - near)
    for ours, plain in ((found, exact), (k3, torch.expm1(near) - near)):
        assert torch.equal(*(torch.autograd.grad(x.sum(), near, retain_graph=True)[0] for x in (ours, plain)))
