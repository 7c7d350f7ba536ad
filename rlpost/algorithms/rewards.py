"""The rewards of sampled tokens: the environment's rewards, scaled, minus the length and KL penalties; or a teacher's.

Shapes: U turns, B episodes, N sampled tokens; see rlpost.algorithms.layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpost.algorithms.advantages import VARIANCE_FLOOR, moments, varies
from rlpost.algorithms.layout import TokenLayout
from rlpost.algorithms.losses import KL_ESTIMATORS
from rlpost.config.schema import KlEstimator, Rewards


def overlong(lengths_U: Tensor, limit: int, buffer: int, price: float) -> Tensor:
    """The length penalty of each answer, at most 0 (arXiv 2503.14476, equation 13): 0 up to `limit - buffer` tokens,
    then linear down to -`price` at `limit`. With a `buffer` of 0 there is no penalty."""
    if buffer == 0:
        return torch.zeros(len(lengths_U))
    over_U = (lengths_U - (limit - buffer)) / buffer
    return -price * over_U.clamp(0.0, 1.0)


def normalized(rewards_U: Tensor, layout: TokenLayout) -> Tensor:
    """Rewards divided by the standard deviation of the batch's episode totals. They are not shifted, so 0 stays 0.

    If all totals are equal there is no scale, and rewards stay as they are (as scikit-learn's StandardScaler treats a
    constant feature). TRL's PPO divides by a running deviation, which does not become zero after one equal batch;
    OpenRLHF and verl do not divide rewards but whiten advantages.
    """
    totals_B = rewards_U.new_zeros(len(layout.groups_B)).index_add(0, layout.episodes_U, rewards_U)
    mean, variance = moments(totals_B)
    return torch.where(varies(mean, variance), rewards_U * torch.rsqrt(variance + VARIANCE_FLOOR), rewards_U)


def placed(rewards_U: Tensor, layout: TokenLayout, where: Rewards) -> Tensor:
    """Turn rewards placed on tokens, (N,): each on its turn's last token, or an episode's sum on its last token."""
    ends_U = layout.lengths_U.cumsum(0) - 1
    if where is Rewards.outcome:
        ends_U = (layout.lengths_B.cumsum(0) - 1)[layout.episodes_U]
    return rewards_U.new_zeros(len(layout.turns_N)).index_add(0, ends_U, rewards_U)


def of_teacher(logprobs_N: Tensor, teacher_N: Tensor) -> Tensor:
    """log teacher - log policy of each token: the reward whose mean is minus KL(policy || teacher).

    On-Policy Distillation (Thinking Machines Lab, 2025). `logprobs_N` are the policy's at the start of the update; no
    gradient passes through.
    """
    return -KL_ESTIMATORS[KlEstimator.k1](logprobs_N, teacher_N).detach()


def less_kl(
    rewards_N: Tensor,
    logprobs_N: Tensor,
    reference_N: Tensor,
    estimator: KlEstimator,
    coefficient: Tensor | float,
) -> Tensor:
    """Rewards minus `coefficient` times the KL estimate of each token (arXiv 1909.08593, equation 2).

    The coefficient may differ by token, (N,).

    `logprobs_N` are the policy's at the start of the update; no gradient passes through.
    """
    return rewards_N - coefficient * KL_ESTIMATORS[estimator](logprobs_N, reference_N).detach()
