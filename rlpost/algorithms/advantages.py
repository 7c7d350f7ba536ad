"""Credit assignment: generalized advantage estimation over sampled tokens, and whitening.

Shapes: B episodes, T token positions, S sampled tokens of the longest episode.
"""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8  # added to the variance: a batch of equal advantages is whitened to zeros


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns per sampled token (arXiv 1506.02438, equation 16), zero elsewhere; both (B, T).

    Time is counted in sampled tokens: tokens that the environment wrote (mask 0) are skipped, so neither how
    many there are nor what the critic says of them matters. `values_BT[b, t]` is the critic's estimate of the
    state *before* token t; `rewards_BT[b, t]` is earned by sampling token t.

    Every episode ends at its last sampled token, and nothing is bootstrapped beyond it. That includes
    episodes cut by the attempt limit or by the context's length: both limits are stated to or felt by the
    agent, no reward ever follows, and a truncated episode is thus a finished one.

    Raises ValueError if a reward lies on a token that was not sampled: it would be lost.
    """
    mask_BT = mask_BT.bool()
    if bool((rewards_BT.masked_fill(mask_BT, 0.0) != 0).any()):
        raise ValueError(
            "a reward lies on a token that was not sampled; put it on the turn's last sampled token"
        )
    order_BS = _sampled_first(mask_BT)
    sampled_BS = mask_BT.gather(1, order_BS)
    rewards_BS = rewards_BT.gather(1, order_BS)
    values_BS = values_BT.gather(1, order_BS).masked_fill(~sampled_BS, 0.0)
    advantages_BS = _reversed_scan(rewards_BS, values_BS, gamma, lam)
    returns_BS = advantages_BS + values_BS
    zeros_BT = torch.zeros_like(values_BT)
    advantages_BT = zeros_BT.scatter(1, order_BS, advantages_BS)
    returns_BT = zeros_BT.scatter(1, order_BS, returns_BS)
    return advantages_BT.masked_fill(~mask_BT, 0.0), returns_BT.masked_fill(~mask_BT, 0.0)


def _sampled_first(mask_BT: Tensor) -> Tensor:
    """Positions of each row, its sampled tokens first and in order, cut at the longest row's count."""
    longest = int(mask_BT.sum(dim=1).max()) if mask_BT.numel() else 0
    return torch.argsort((~mask_BT).int(), dim=1, stable=True)[:, :longest]


def _reversed_scan(rewards_BS: Tensor, values_BS: Tensor, gamma: float, lam: float) -> Tensor:
    """Padding lies on the right with reward and value zero, so it hands on an advantage of zero."""
    next_values_BS = torch.cat([values_BS[:, 1:], torch.zeros_like(values_BS[:, :1])], dim=1)
    deltas_BS = rewards_BS + gamma * next_values_BS - values_BS
    advantages_BS = torch.empty_like(deltas_BS)
    carried_B = deltas_BS.new_zeros(deltas_BS.shape[0])
    for s in reversed(range(deltas_BS.shape[1])):
        carried_B = deltas_BS[:, s] + gamma * lam * carried_B
        advantages_BS[:, s] = carried_B
    return advantages_BS


def moments(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over all entries, as scalars."""
    return values_N.mean(), values_N.var(unbiased=False)


def whiten(values_N: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1, given the moments of the *whole* batch's sampled tokens.

    The moments are arguments so that a shard of a batch is whitened as the whole batch is.
    """
    return (values_N - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)


def explained_variance(values_N: Tensor, returns_N: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows the mean only.

    NaN-free: zero where the returns do not vary.
    """
    variance = returns_N.var(unbiased=False)
    residual = (returns_N - values_N).var(unbiased=False)
    return torch.where(variance > VARIANCE_FLOOR, 1.0 - residual / variance.clamp_min(VARIANCE_FLOOR), 0.0)
