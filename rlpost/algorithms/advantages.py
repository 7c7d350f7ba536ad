"""Credit assignment as plain tensor functions: discounted sums, GAE, group baselines, whitening.

Shapes: B episodes, T token positions, S sampled tokens of the longest episode, M members of all groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

DEVIATION_FLOOR = 1e-6  # added to a group's standard deviation
VARIANCE_FLOOR = 1e-8  # added to the variance of a whole batch
# Values whose difference is below this share of their size count as equal. It is 84 units in the last place of float32,
# the difference between sums of many terms in different orders. Divided by its own deviation, such noise would look
# like signal.
EQUAL_WITHIN = 1e-5


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns per sampled token (arXiv 1506.02438, equation 16), and zero elsewhere; both (B, T).

    Time is counted in sampled tokens. Tokens that the environment wrote (mask 0) are skipped, so neither their number
    nor the critic's estimates on them matter. `values_BT[b, t]` is the critic's estimate of the state *before* token t;
    `rewards_BT[b, t]` is earned by sampling token t.

    Every episode ends at its last sampled token, without bootstrapping beyond it. This includes episodes cut by the
    attempt limit or the context length: the agent is told the first limit and can notice the second, and no reward
    follows either, so a truncated episode counts as finished.

    Raises ValueError if a token that was not sampled has a reward, since the reward would be lost.
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
    """Positions of each row with its sampled tokens first, in order; cut at the largest count of sampled tokens."""
    longest = int(mask_BT.sum(dim=1).max()) if mask_BT.numel() else 0
    return torch.argsort((~mask_BT).int(), dim=1, stable=True)[:, :longest]


def _reversed_scan(rewards_BS: Tensor, values_BS: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE along the last dimension. Padding is on the right, with reward and value 0, so it passes on advantage 0."""
    next_values_BS = torch.cat([values_BS[:, 1:], torch.zeros_like(values_BS[:, :1])], dim=1)
    return discounted_sums(rewards_BS + gamma * next_values_BS - values_BS, gamma * lam)


def discounted_sums(values_BS: Tensor, factor: float) -> Tensor:
    """The sum over k >= s of factor^(k - s) values[k] for every s, along the last dimension.

    A doubling scan (Hillis and Steele, 1986): after round i every entry is the sum over the next 2^i entries, so S
    entries take log2(S) additions of whole tensors. It never divides by powers of `factor`, which may be 0.
    """
    reach, sums_BS = 1, values_BS
    while reach < values_BS.shape[-1]:
        sums_BS = sums_BS + factor * pad(sums_BS[..., reach:], (0, reach))
        reach, factor = 2 * reach, factor * factor
    return sums_BS


def group_normalized(rewards_M: Tensor, groups_M: Tensor) -> Tensor:
    """(reward - mean) / standard deviation within each group (arXiv 2402.03300, section 4.1.2).

    The deviation is the sample's (n - 1), as in TRL and verl; the paper does not specify it. Equal rewards give exact
    zeros.
    """
    centred_M = group_centred(rewards_M, groups_M)
    square_M = _sums(centred_M.square(), groups_M) / (_sizes(groups_M) - 1.0).clamp_min(1.0)
    return centred_M / (square_M.sqrt() + DEVIATION_FLOOR)


def group_centred(rewards_M: Tensor, groups_M: Tensor) -> Tensor:
    """reward - mean of the group (arXiv 2503.20783). Equal rewards give exact zeros."""
    means_M = _sums(rewards_M, groups_M) / _sizes(groups_M)
    return (rewards_M - means_M).masked_fill(flat(rewards_M, groups_M), 0.0)


def leave_one_out(rewards_M: Tensor, groups_M: Tensor) -> Tensor:
    """reward - mean of the group's other members (arXiv 2402.14740, section 2.2); zero in groups of one."""
    sizes_M = _sizes(groups_M)
    others_M = (_sums(rewards_M, groups_M) - rewards_M) / (sizes_M - 1.0).clamp_min(1.0)
    return (rewards_M - others_M).masked_fill(flat(rewards_M, groups_M), 0.0)


def flat(rewards_M: Tensor, groups_M: Tensor) -> Tensor:
    """Whether all members of an entry's group have the same reward (differences within EQUAL_WITHIN of the largest
    size), bool (M,). Groups of one count as flat."""
    count = int(groups_M.max()) + 1 if groups_M.numel() else 0
    low, high = (
        rewards_M.new_zeros(count).scatter_reduce(0, groups_M, rewards_M, how, include_self=False)
        for how in ("amin", "amax")
    )
    return (high - low <= EQUAL_WITHIN * torch.maximum(low.abs(), high.abs()))[groups_M]


def _sums(values_M: Tensor, groups_M: Tensor) -> Tensor:
    """The sum of each entry's group, (M,)."""
    count = int(groups_M.max()) + 1 if groups_M.numel() else 0
    return values_M.new_zeros(count).index_add(0, groups_M, values_M)[groups_M]


def _sizes(groups_M: Tensor) -> Tensor:
    return torch.bincount(groups_M)[groups_M].double()


def moments(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over all entries, as scalars."""
    return values_N.mean(), values_N.var(unbiased=False)


def varies(mean: Tensor, variance: Tensor) -> Tensor:
    """Whether the values with these moments differ by more than rounding, a bool scalar."""
    return variance > (EQUAL_WITHIN * mean).square()


def whiten(values_N: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1, with the moments of the *whole* batch's sampled tokens.

    The moments are arguments, so that a shard is whitened like the whole batch. Equal values (see EQUAL_WITHIN) give
    exact zeros, because their differences from a rounded mean carry no signal.
    """
    whitened_N = (values_N - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    return torch.where(varies(mean, variance), whitened_N, 0.0)


def explained_variance(values_N: Tensor, returns_N: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that predicts the mean only.

    The result is 0, not NaN, if the returns do not vary.
    """
    mean, variance = moments(returns_N)
    residual = (returns_N - values_N).var(unbiased=False)
    known = varies(mean, variance) & (variance > VARIANCE_FLOOR)
    return torch.where(known, 1.0 - residual / variance.clamp_min(VARIANCE_FLOOR), 0.0)
