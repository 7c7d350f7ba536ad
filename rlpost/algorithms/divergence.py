"""How far two policies are apart: the KL divergence from tokens that one of them drew, with its standard error.

Shapes: N sampled tokens of B episodes, in the order of the episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlpost.algorithms.losses import kl_k1, kl_k3

ESTIMATORS = {"k1": kl_k1, "k3": kl_k3}


def divergence(sampler_N: Tensor, other_N: Tensor, lengths_B: Sequence[int]) -> dict[str, float]:
    """KL(sampler || other) in nats, by the estimators k1 and k3 (Schulman, "Approximating KL Divergence", 2020).

    `k1_token`: the mean of k1 over all tokens. `k1_episode`: the mean over episodes of the sum over an episode's
    tokens, which estimates the divergence of whole episodes: by the chain rule that is the expected sum of the tokens'
    divergences. The same for k3. With each its standard error, `k1_token_error` and so on. An episode is one draw;
    the error of a mean over tokens is that of a ratio of two sums over episodes (Cochran, Sampling Techniques, 1977,
    eq. 2.46, with B / (B - 1)).

    Args:
        sampler_N: log-probs under the policy that drew the tokens.
        other_N: log-probs of the same tokens under the other policy.
        lengths_B: the number of tokens of each episode.

    Raises ValueError for fewer than two episodes, or an episode without tokens.
    """
    if len(lengths_B) < 2 or min(lengths_B) < 1:
        raise ValueError("a standard error needs two episodes, each with a token")
    sums_B = {
        name: _per_episode(estimator(sampler_N.double(), other_N.double()), lengths_B)
        for name, estimator in ESTIMATORS.items()
    }
    found: dict[str, float] = {}
    for name, each_B in sums_B.items():
        found |= _mean_and_error(f"{name}_token", each_B, torch.tensor(lengths_B).double())
        found |= _mean_and_error(f"{name}_episode", each_B, torch.ones(len(lengths_B)).double())
    return found


def _per_episode(values_N: Tensor, lengths_B: Sequence[int]) -> Tensor:
    return torch.stack([episode.sum() for episode in torch.split(values_N, list(lengths_B))])


def _mean_and_error(name: str, sums_B: Tensor, sizes_B: Tensor) -> dict[str, float]:
    """The ratio of the sums of both, with its standard error. If all sizes are 1, these are the mean's own."""
    count, size = len(sums_B), float(sizes_B.sum())
    mean = float(sums_B.sum()) / size
    spread = float((sums_B - mean * sizes_B).square().sum())
    return {name: mean, f"{name}_error": (spread * count / (count - 1)) ** 0.5 / size}
