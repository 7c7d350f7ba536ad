"""Advantage estimators over the flat sampled tokens of a batch, for the members of `Estimator`.

    estimate(which, rewards_N, values_N, layout, gamma, lam, by_turn) ─▶ Estimate

Rewards are those of tokens after scaling and KL; rlpost.algorithms.rewards defines which tokens receive them. With a
teacher they are its log ratios, and their returns are the advantages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.algorithms.advantages import (
    discounted_sums,
    gae,
    group_centred,
    group_normalized,
    leave_one_out,
)
from rlpost.algorithms.layout import TokenLayout
from rlpost.config.presets import Estimator

GroupBaseline = Callable[[Tensor, Tensor], Tensor]
BASELINES: dict[Estimator, GroupBaseline] = {
    Estimator.group_normalized: group_normalized,
    Estimator.group_centred: group_centred,
    Estimator.leave_one_out: leave_one_out,
}


@dataclass(frozen=True)
class Estimate:
    """One entry per sampled token (N,). If `value_mask_N` is false, the advantage only repeats that of the turn."""

    advantages_N: Tensor
    returns_N: Tensor
    # Bool: means, moments and the critic's loss use these tokens.
    value_mask_N: Tensor


def with_critic(
    which: Estimator, rewards_N: Tensor, values_N: Tensor, layout: TokenLayout, gamma: float, lam: float
) -> Estimate:
    """GAE per token or per turn. Per turn, a turn is one action, and its value is that of the state before its first
    token (arXiv 2501.17161)."""
    if which is Estimator.gae:
        advantages_N, returns_N = _ragged_gae(rewards_N, values_N, layout.lengths_B, gamma, lam)
        return Estimate(advantages_N, returns_N, torch.ones_like(layout.opens_N))
    turns_B = torch.bincount(layout.episodes_U, minlength=len(layout.groups_B))
    advantages_U, returns_U = _ragged_gae(
        layout.per_turn(rewards_N), values_N[layout.opens_N], turns_B, gamma, lam
    )
    return Estimate(advantages_U[layout.turns_N], returns_U[layout.turns_N], layout.opens_N)


def without_critic(
    which: Estimator, rewards_N: Tensor, layout: TokenLayout, gamma: float, by_turn: bool
) -> Estimate:
    """Returns, or rewards relative to the group; `by_turn` compares turns instead of whole episodes."""
    all_N = torch.ones_like(layout.opens_N)
    returns_N = _rewards_to_come(rewards_N, layout, gamma)
    if which in (Estimator.returns, Estimator.teacher):
        return Estimate(returns_N, returns_N, all_N)
    baseline = BASELINES[which]
    if by_turn:
        return Estimate(_process_supervision(rewards_N, layout, baseline), returns_N, all_N)
    scores_B = layout.per_episode(rewards_N.double())
    advantages_B = baseline(scores_B, layout.groups_B)
    return Estimate(advantages_B.to(rewards_N.dtype)[layout.episodes_N], returns_N, all_N)


def by_selection(advantages_B: Tensor, rewards_N: Tensor, layout: TokenLayout, gamma: float) -> Estimate:
    """The advantage of an episode for each of its tokens; see rlpost.algorithms.selection."""
    all_N = torch.ones_like(layout.opens_N)
    return Estimate(advantages_B[layout.episodes_N], _rewards_to_come(rewards_N, layout, gamma), all_N)


def _process_supervision(rewards_N: Tensor, layout: TokenLayout, baseline: GroupBaseline) -> Tensor:
    """Each turn's reward relative to all turns of its group. A token's advantage is the sum from its turn onwards
    (arXiv 2402.03300, section 4.1.3)."""
    scored_U = baseline(layout.per_turn(rewards_N.double()), layout.groups_U)
    turns_B = torch.bincount(layout.episodes_U, minlength=len(layout.groups_B))
    mask_BK = _mask(turns_B)
    scored_BK = torch.zeros(mask_BK.shape, dtype=scored_U.dtype).masked_scatter(mask_BK, scored_U)
    return discounted_sums(scored_BK, 1.0)[mask_BK].to(rewards_N.dtype)[layout.turns_N]


def _rewards_to_come(rewards_N: Tensor, layout: TokenLayout, gamma: float) -> Tensor:
    mask_BS = _mask(layout.lengths_B)
    rewards_BS = torch.zeros(mask_BS.shape, dtype=rewards_N.dtype).masked_scatter(mask_BS, rewards_N)
    return discounted_sums(rewards_BS, gamma)[mask_BS]


def _ragged_gae(
    rewards_N: Tensor, values_N: Tensor, counts_B: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE of flat tensors: each episode is a row with `counts_B` entries."""
    mask_BS = _mask(counts_B)
    rewards_BS, values_BS = (
        torch.zeros(mask_BS.shape, dtype=x.dtype).masked_scatter(mask_BS, x) for x in (rewards_N, values_N)
    )
    advantages_BS, returns_BS = gae(rewards_BS, values_BS, mask_BS, gamma, lam)
    return advantages_BS[mask_BS], returns_BS[mask_BS]


def _mask(counts_B: Tensor) -> Tensor:
    return torch.arange(int(counts_B.max()))[None, :] < counts_B[:, None]
