"""Losses of PPO and SFT over flat sampled tokens (N), and the usual estimators of the KL divergence.

Each loss is a sum over its tokens divided by `denominator`, the number of tokens of the whole batch, and
returns (loss, metrics); see the package's docstring for how metrics are reduced.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]


def kl_k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """log p - log q per token drawn from p: unbiased estimate of KL(p || q), may be negative."""
    return logprobs_N - reference_N


def kl_k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 per token drawn from p: biased, low variance, its gradient is unbiased."""
    return 0.5 * (logprobs_N - reference_N).square()


def kl_k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) per token drawn from p: unbiased, never negative (Schulman, "Approximating KL", 2020)."""
    log_ratio_N = reference_N - logprobs_N
    return torch.expm1(log_ratio_N) - log_ratio_N


def policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip: float, denominator: float
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), negated: to be minimised.

    Metrics: approx_kl (k3 from the old policy to this one), clip_fraction (tokens whose clipped term is the
    one that counts), ratio_max.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.exp()
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1.0 - clip, 1.0 + clip) * advantages_N
    loss = -torch.minimum(plain_N, clipped_N).sum() / denominator
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.detach(),
            "approx_kl": kl_k3(old_logprobs_N, logprobs_N).sum() / denominator,
            "clip_fraction": (clipped_N < plain_N).sum() / denominator,
            "ratio_max": ratio_N.max() if ratio_N.numel() else ratio_N.new_zeros(()),
        }
    return loss, metrics


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float, denominator: float
) -> tuple[Tensor, Metrics]:
    """Half the squared error to the returns, the worse of the value and of the value clipped to within `clip`
    of its estimate at the start of the update (as in OpenAI baselines ppo2).

    Metrics: value_clip_fraction (tokens whose clipped term is the one that counts).
    """
    kept_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    plain_N = (values_N - returns_N).square()
    clipped_N = (kept_N - returns_N).square()
    loss = 0.5 * torch.maximum(plain_N, clipped_N).sum() / denominator
    metrics = {
        "value_loss": loss.detach(),
        "value_clip_fraction": (clipped_N > plain_N).detach().sum() / denominator,
    }
    return loss, metrics


def entropy_bonus(entropy_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Mean entropy per token in nats; subtract it, times its coefficient, from the loss."""
    entropy = entropy_N.sum() / denominator
    return entropy, {"entropy": entropy.detach()}


def kl_penalty(logprobs_N: Tensor, reference_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Mean k3 to the reference per token; add it, times its coefficient, to the loss."""
    kl = kl_k3(logprobs_N, reference_N).sum() / denominator
    return kl, {"kl_loss": kl.detach()}


def sft_loss(logprobs_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Mean negative log-likelihood per learnt token, in nats."""
    loss = -logprobs_N.sum() / denominator
    return loss, {"loss": loss.detach()}
