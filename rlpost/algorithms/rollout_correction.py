"""Corrections for answers that another policy sampled than the one that learns: weights, and rejected sequences.

    w = exp(learner's log-prob at the start of the update - engine's log-prob), of a token, a turn or a sequence

The engine samples with the policy of `rollout.lag` updates ago, or with the current one in another precision. The
surrogate's ratio and its clip stay those of the update: policy now / policy at its start, which is the proximal policy
of the decoupled objective (arXiv 2110.00641; AReaL, arXiv 2505.24298). Weights multiply the surrogate's terms and have
no gradient. Denominators stay those of the whole minibatch, so a mask never makes another token's gradient larger.

Shapes: N sampled tokens, in the order of rlpost.algorithms.layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpost.algorithms.layout import TokenLayout
from rlpost.algorithms.losses import Metrics, log_ratios, ratios
from rlpost.config import rollout_correction
from rlpost.config.presets import Ratio
from rlpost.config.schema import Config, RolloutIS, RolloutReject

Bounds = tuple[float, float]  # the smallest and the largest ratio
KL_WEIGHT_CAP = 2.0  # as algo.rollout_is_cap is by default


def surrogate_weights(
    logprobs_N: Tensor, sampling_N: Tensor, layout: TokenLayout, cfg: Config
) -> tuple[Tensor, Metrics]:
    """The weight (N,) of each token's term in the surrogate, by `algo.rollout_is` and `algo.rollout_reject`.

    Args:
        logprobs_N: the learner's log-probs before the first step of the update.
        sampling_N: the engine's log-probs of the same tokens, as sampled.

    Metrics: those of `bounded`, rollout_is/rejected (sequences left out / sequences), rollout_is/ess.
    """
    weights_N, metrics = torch.ones_like(sampling_N), Metrics()
    kind = rollout_correction.importance_weights(cfg)
    if kind is not RolloutIS.none:
        level = rollout_correction.level(cfg)
        log_ratio_N = log_ratios(logprobs_N, sampling_N, layout.units_N(level), level)
        weights_N, metrics = bounded(log_ratio_N, kind, rollout_correction.weight_bounds(cfg))
    reject = cfg.algo.rollout_reject
    if reject is not RolloutReject.none:
        of_sequence = Ratio.episode if reject is RolloutReject.sequence else Ratio.episode_mean
        log_ratio_N = log_ratios(logprobs_N, sampling_N, layout.units_N(of_sequence), of_sequence)
        rejected_N = outside(ratios(log_ratio_N), rollout_correction.kept_bounds(cfg))
        weights_N = weights_N.masked_fill(rejected_N, 0.0)
        metrics["rollout_is/rejected"] = rejected_N[layout.sample_starts_N].float().mean()
    return weights_N, metrics | {"rollout_is/ess": effective_share(weights_N)}


def kl_weights_of(cfg: Config, logprobs_N: Tensor, sampling_N: Tensor) -> Tensor | float:
    """`kl_weights` where `cfg` weighs the KL, else 1."""
    return kl_weights(logprobs_N, sampling_N) if rollout_correction.weighs_kl(cfg) else 1.0


def kl_weights(logprobs_N: Tensor, sampling_N: Tensor) -> Tensor:
    """The weight (N,) of each token's KL to the reference: policy / engine, at most KL_WEIGHT_CAP; without gradient.

    The estimates of the KL are meant for the policy's own tokens. k3 grows as reference / policy, without a bound on
    tokens that an older policy sampled and the current one has made rare: single tokens then rule the gradient. With
    the weight they count as reference / engine (DeepSeek-V3.2, arXiv 2512.02556, eq. 7, whose weight is that of the
    token at every level of the surrogate's).
    """
    return ratios((logprobs_N - sampling_N).detach()).clamp_max(KL_WEIGHT_CAP)


def bounded(log_ratio_N: Tensor, kind: RolloutIS, bounds: Bounds) -> tuple[Tensor, Metrics]:
    """Importance weights learner / engine within `bounds`, from the log ratio; without gradient.

    truncate: a weight beyond a bound counts as the bound (truncated importance sampling, Yao et al. 2025). mask: it
    counts as 0 (masked importance sampling, IcePop).

    Metrics, over all tokens: rollout_is/weight_mean and rollout_is/weight_max (both before the bounds),
    rollout_is/capped (the share of tokens whose weight the bounds changed).
    """
    weights_N = ratios(log_ratio_N.detach())
    if kind is RolloutIS.truncate:
        kept_N = weights_N.clamp(*bounds)
    else:
        kept_N = weights_N.masked_fill(outside(weights_N, bounds), 0.0)
    metrics = {
        "rollout_is/weight_mean": weights_N.mean(),
        "rollout_is/weight_max": weights_N.max(),
        "rollout_is/capped": (kept_N != weights_N).float().mean(),
    }
    return kept_N, metrics


def outside(ratio_N: Tensor, bounds: Bounds) -> Tensor:
    """Whether each ratio lies beyond the bounds, (N,) bool. A ratio equal to a bound does not."""
    low, high = bounds
    return (ratio_N < low) | (ratio_N > high)


def effective_share(weights_N: Tensor) -> Tensor:
    """Kish's effective sample size of the weights / N: (sum w)^2 / (N sum w^2); 0 if all weights are 0."""
    squares = weights_N.square().sum()
    share = weights_N.sum().square() / (len(weights_N) * squares)
    return torch.where(squares > 0, share, torch.zeros_like(share))
