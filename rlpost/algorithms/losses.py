"""Losses over flat sampled tokens (N), and the usual estimators of the KL divergence.

Each loss is a sum over tokens, weighted by `weights_N` (see rlpost.algorithms.layout) or divided by `denominator`, the
number of tokens of the whole minibatch, so a micro-batch's loss is its share of the minibatch's. Each returns (loss,
metrics); metrics are means over tokens, and the package's docstring says how they are reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.config.presets import Ratio, Surrogate
from rlpost.config.schema import KlEstimator, SftLoss

Metrics = dict[str, Tensor]
# Log ratios are clamped to this value (a ratio of 5e8, as in verl). In float32 exp overflows at 88.7; even if the
# surrogate does not select the infinite term, its backward computes 0 x infinity.
LOG_RATIO_LIMIT = 20.0


def is_maximum(metric: str) -> bool:
    """Whether a metric is reduced by the maximum. All others add up, or are averaged over optimizer steps."""
    return metric.endswith("_max")


def kl_k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """log p - log q per token drawn from p: an unbiased estimate of KL(p || q) that may be negative."""
    return logprobs_N - reference_N


def kl_k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 per token drawn from p: biased, with low variance and an unbiased gradient."""
    return 0.5 * (logprobs_N - reference_N).square()


def kl_k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) per token drawn from p: unbiased, never negative (Schulman, "Approximating KL", 2020).

    If log(q/p) is above LOG_RATIO_LIMIT, q/p continues along its tangent: finite, with a gradient that still raises p.
    """
    log_ratio_N = reference_N - logprobs_N
    beyond_N = (log_ratio_N - LOG_RATIO_LIMIT).relu() * math.exp(LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio_N.clamp_max(LOG_RATIO_LIMIT)) + beyond_N - log_ratio_N


KL_ESTIMATORS: dict[KlEstimator, Callable[[Tensor, Tensor], Tensor]] = {
    KlEstimator.k1: kl_k1,
    KlEstimator.k2: kl_k2,
    KlEstimator.k3: kl_k3,
}


@dataclass(frozen=True)
class Clip:
    """Bounds of the probability ratio: 1 - low to 1 + high. Above `ceiling` only the clipped term counts."""

    low: float
    high: float
    ceiling: float | None = None


def log_ratios(
    new_N: Tensor, old_N: Tensor, units_N: Tensor | None, ratio: Ratio, token_weights_N: Tensor | None = None
) -> Tensor:
    """The log ratio new / old in each token's term, (N,).

    token: the token's own. turn, episode: the sum over the unit (tokens with one number in `units_N`) of each
    difference times its `token_weights_N`, if given. episode_mean: the mean over the unit (arXiv 2507.18071, equation
    7). All tokens of a unit must be in one call.
    """
    differences_N = new_N - old_N
    if ratio is Ratio.token or units_N is None:
        return differences_N
    if token_weights_N is not None:
        differences_N = differences_N * token_weights_N
    _, inverse_N, counts = torch.unique(units_N, return_inverse=True, return_counts=True)
    sums = differences_N.new_zeros(len(counts)).index_add(0, inverse_N, differences_N)
    return (sums / counts if ratio is Ratio.episode_mean else sums)[inverse_N]


def ratios(log_ratio_N: Tensor) -> Tensor:
    """exp of the log ratio. Above LOG_RATIO_LIMIT it is a finite constant without gradient, as under a dual clip."""
    return log_ratio_N.clamp_max(LOG_RATIO_LIMIT).exp()


def policy_loss(
    logprobs_N: Tensor,
    log_ratio_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    surrogate: Surrogate,
    clip: Clip,
    denominator: float,
) -> tuple[Tensor, Metrics]:
    """The negated surrogate, weighted by `weights_N`, to minimise.

    clipped: min(r A, clip(r) A) (arXiv 1707.06347, equation 7), with separate lower and upper bounds (arXiv 2503.14476,
    equation 10). Above `clip.ceiling` only the clipped term counts, whatever the sign of A (the published code of arXiv
    2501.17161). clipped_weight: clip(r) A log pi, with no gradient through the clipped ratio (arXiv 2506.13585,
    equation 4).

    Metrics: clip_fraction (tokens whose ratio the clip changed; with `clipped` only if that term counts), ratio_max.
    """
    ratio_N = ratios(log_ratio_N)
    bounded_N = ratio_N.clamp(1.0 - clip.low, 1.0 + clip.high)
    if surrogate is Surrogate.clipped_weight:
        changed_N = bounded_N != ratio_N
        terms_N = bounded_N.detach() * advantages_N * logprobs_N
    else:
        plain_N, clipped_N = ratio_N * advantages_N, bounded_N * advantages_N
        changed_N = clipped_N < plain_N
        if clip.ceiling is not None:
            changed_N = changed_N | (ratio_N > clip.ceiling)
        terms_N = torch.where(changed_N, clipped_N, plain_N)
    loss = -(weights_N * terms_N).sum()
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.detach(),
            "clip_fraction": changed_N.sum() / denominator,
            "ratio_max": ratio_N.max() if ratio_N.numel() else ratio_N.new_zeros(()),
        }
    return loss, metrics


def logprob_loss(logprobs_N: Tensor, advantages_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Metrics]:
    """-sum w A log pi, without a ratio or a clip. With A = 1 and w = 1 / N it is `sft_loss`.

    Metrics: policy_loss.
    """
    loss = -(weights_N * advantages_N * logprobs_N).sum()
    return loss, {"policy_loss": loss.detach()}


def approx_kl(logprobs_N: Tensor, old_logprobs_N: Tensor, denominator: float) -> Metrics:
    """Metrics: approx_kl, the k3 estimate between the old policy and the current one."""
    return {"approx_kl": kl_k3(old_logprobs_N, logprobs_N).sum().detach() / denominator}


def engine_gap(sampling_N: Tensor, logprobs_N: Tensor, denominator: float) -> Metrics:
    """How far the learner's policy is from the one that sampled the tokens.

    Metrics: logprob_gap and logprob_gap_max, |log-prob when sampled - log-prob here|; kl_engine and kl_engine_k3, the
    estimates k1 and k3 of KL(engine || learner).
    """
    logprobs_N = logprobs_N.detach()
    gap_N = (sampling_N - logprobs_N).abs()
    largest = gap_N.max() if gap_N.numel() else gap_N.new_zeros(())
    return {
        "logprob_gap": gap_N.sum() / denominator,
        "logprob_gap_max": largest,
        "kl_engine": kl_k1(sampling_N, logprobs_N).sum() / denominator,
        "kl_engine_k3": kl_k3(sampling_N, logprobs_N).sum() / denominator,
    }


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float, denominator: float
) -> tuple[Tensor, Metrics]:
    """Half the squared error to the returns. The larger error counts: that of the value, or that of the value clipped
    to within `clip` of the estimate at the start of the update (as in OpenAI baselines ppo2).

    Metrics: value_clip_fraction (tokens for which the clipped error counts).
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


def entropy_bonus(entropy_N: Tensor, weights_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Weighted entropy in nats. Subtract it, times its coefficient, from the loss. Metrics: entropy, per token."""
    return (weights_N * entropy_N).sum(), {"entropy": entropy_N.detach().sum() / denominator}


def kl_penalty(
    logprobs_N: Tensor,
    reference_N: Tensor,
    weights_N: Tensor,
    estimator: KlEstimator,
    denominator: float,
    sampled_N: Tensor | float = 1.0,
) -> tuple[Tensor, Metrics]:
    """Weighted k2 or k3 to the reference. Add it, times its coefficient, to the loss. Metrics: kl_loss, per token.

    `sampled_N`: policy / sampler, if another policy sampled the tokens; see `rollout_correction.kl_weights_of`.

    On tokens sampled from the policy, the expected gradient of k2 is that of KL(policy || reference), and the expected
    gradient of k3 that of KL(reference || policy). Raises ValueError for k1: its expected gradient is 0 (E[grad log pi]
    = 0).
    """
    if estimator is KlEstimator.k1:
        raise ValueError("k1 in the loss has no gradient but noise; use k2 or k3, or k1 in the reward")
    kl_N = sampled_N * KL_ESTIMATORS[estimator](logprobs_N, reference_N)
    return (weights_N * kl_N).sum(), {"kl_loss": kl_N.detach().sum() / denominator}


def sft_loss(logprobs_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Mean negative log-likelihood per loss token, in nats."""
    loss = -logprobs_N.sum() / denominator
    return loss, {"loss": loss.detach()}


def dft_loss(logprobs_N: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Dynamic fine-tuning (arXiv 2508.05629): each token's term of `sft_loss` times the token's own probability.

    The loss is the mean of -sg(p) log p over loss tokens, where no gradient passes through the weight sg(p). If all
    probabilities are 1, its gradient is that of `sft_loss`.

    Metrics: loss (the plain negative log-likelihood, which compares with that of `sft_loss`), dft_loss.
    """
    loss = -(logprobs_N.detach().exp() * logprobs_N).sum() / denominator
    _, metrics = sft_loss(logprobs_N.detach(), denominator)
    return loss, metrics | {"dft_loss": loss.detach()}


SFT_LOSSES: dict[SftLoss, Callable[[Tensor, float], tuple[Tensor, Metrics]]] = {
    SftLoss.nll: sft_loss,
    SftLoss.dft: dft_loss,
}
