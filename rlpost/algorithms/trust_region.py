"""Trust regions by the divergence of a token (DPPO, "Rethinking the Trust Region in LLM RL", arXiv 2602.04879).

In place of a clipped ratio, a token's term has no gradient if its step leads away from the old policy and the policies
already differ by more than a bound. The divergence is that of two outcomes, this token or any other ("binary" in the
paper): a lower bound of the one over the whole vocabulary, from the log-probs that are there anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpost.config.schema import TrustRegion

# Largest log-prob that counts: the probability of all other tokens stays above 0, and its logarithm finite.
_ALMOST_SURE = -1e-7


def total_variation(old_N: Tensor, new_N: Tensor) -> Tensor:
    """|p - q| per token, from log-probs: the total variation of two outcomes."""
    return (new_N.exp() - old_N.exp()).abs()


def binary_kl(old_N: Tensor, new_N: Tensor) -> Tensor:
    """q log(q / p) + (1 - q) log((1 - q) / (1 - p)) per token in nats, q old and p new, from log-probs."""
    old_N, new_N = old_N.clamp_max(_ALMOST_SURE), new_N.clamp_max(_ALMOST_SURE)
    other_old_N, other_new_N = (torch.log(-torch.expm1(logprobs_N)) for logprobs_N in (old_N, new_N))
    return old_N.exp() * (old_N - new_N) + other_old_N.exp() * (other_old_N - other_new_N)


def leaving(
    old_N: Tensor, new_N: Tensor, advantages_N: Tensor, region: TrustRegion, max_divergence: float
) -> Tensor:
    """Whether a token's step leads out of the trust region, (N,) bool (arXiv 2602.04879, the mask of DPPO).

    It does if the divergence exceeds `max_divergence` and the token is already likelier than before with a positive
    advantage, or less likely with a negative one. `region` is tv or kl.
    """
    old_N, new_N = old_N.detach(), new_N.detach()
    divergence_N = (total_variation if region is TrustRegion.tv else binary_kl)(old_N, new_N)
    away_N = advantages_N * (new_N - old_N) > 0
    return away_N & (divergence_N > max_divergence)
