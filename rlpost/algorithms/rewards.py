"""What a sampled token earns: the environment's reward, scaled, less the price of leaving the reference."""

from __future__ import annotations

from torch import Tensor

from rlpost.algorithms.losses import Metrics, kl_k1


def scaled(rewards_N: Tensor, scale: float) -> tuple[Tensor, Metrics]:
    """Environment rewards times `scale`. Metrics: reward_scaled_mean, per token."""
    rewards_N = rewards_N * scale
    return rewards_N, {"reward_scaled_mean": rewards_N.mean()}


def less_kl(
    rewards_N: Tensor, logprobs_N: Tensor, reference_N: Tensor, coefficient: float
) -> tuple[Tensor, Metrics]:
    """Rewards less `coefficient` times the k1 estimate of each token (arXiv 1909.08593, equation 2).

    `logprobs_N` are those of the policy that sampled the tokens and carry no gradient. Metrics: kl_reward_mean,
    what is taken off per token.
    """
    penalty_N = coefficient * kl_k1(logprobs_N, reference_N).detach()
    return rewards_N - penalty_N, {"kl_reward_mean": penalty_N.mean()}
