"""Turns episodes and log-probs into the inputs of the losses: advantages, returns and weights, fixed for an update.

    turns' rewards ─▶ length penalty, scale, normalization ─▶ on tokens ─▶ less KL ─▶ estimator ─▶ whitening
    or a teacher's log ratios, on every token ───────────────────────────────┘
    algo=rft, dpo: which episodes are learnt from (rlpost.algorithms.selection), in place of an estimator

rlpost.config.presets has the estimator of each algorithm. Every rank computes the same sums from the same numbers. All
tensors have one entry per sampled token of the batch (N), in the order of rlpost.algorithms.layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlpost.algorithms import losses, rewards
from rlpost.algorithms.advantages import explained_variance, flat, moments, whiten
from rlpost.algorithms.estimators import Estimate, by_selection, with_critic, without_critic
from rlpost.algorithms.layout import TokenLayout
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, TEACHER
from rlpost.algorithms.rollout_correction import kl_weights_of, surrogate_weights
from rlpost.algorithms.selection import Selection, distinct_successes, ranked_pairs
from rlpost.config.presets import TABLE, Algorithm, Estimator
from rlpost.config.rollout_correction import corrects
from rlpost.config.schema import AlgoConfig, Config, KlPlace, OldLogprobs, RewardControl, Rewards
from rlpost.errors import LearnerError
from rlpost.types import Trajectory

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainingBatch:
    """What stays fixed during an update's epochs. `old_values_N` needs a critic, `reference_N` a KL term.

    Without `old_logprobs_N` the old policy is the current one: the update has one step.
    """

    layout: TokenLayout
    sampling_N: Tensor
    old_logprobs_N: Tensor | None
    advantages_N: Tensor
    returns_N: Tensor
    value_mask_N: Tensor  # bool: tokens that train the critic
    rollout_is_weights_N: Tensor
    token_weights_N: Tensor  # weights of log-probs in a turn's ratio (algo.thought_weight)
    old_values_N: Tensor | None
    reference_N: Tensor | None
    learnt_B: Tensor  # bool: episodes with a term in the loss
    pairs_P2: Tensor | None = None  # algo=dpo: the better and the worse episode of each pair


def assign_credit(
    trajectories: Sequence[Trajectory], outputs: dict[str, Tensor], cfg: Config
) -> tuple[TrainingBatch, Metrics]:
    """Advantages and returns of every sampled token, with the diagnostics at the start of the update.

    `outputs` are (N,) by role, if computed: log-probs of the policy, the reference and the teacher, values of the
    critic.

    Raises LearnerError if a reward or sampling log-prob is not finite, a turn has no tokens, or a model behind an
    endpoint played.
    """
    if foreign := next((t.player for t in trajectories if t.player is not None), None):
        raise LearnerError(f"{foreign} behind an endpoint played a trajectory: its tokens are unknown")
    row, algo = TABLE[cfg.algo.name], cfg.algo
    layout = _layout(trajectories)
    sampling_N = torch.tensor([x for t in trajectories for turn in t.turns for x in turn.logprobs])
    if algo.old_logprobs is OldLogprobs.engine:
        outputs = {**outputs, POLICY: sampling_N}
    rewards_N, metrics = _rewards(trajectories, layout, sampling_N, outputs, cfg)
    if not (torch.isfinite(sampling_N).all() and torch.isfinite(rewards_N).all()):
        raise LearnerError("a trajectory carries a reward or sampling log-prob that is not finite")
    selection = _selected(row, trajectories, rewards_N, layout) if row.selects else None
    estimate = _estimate(row, rewards_N, outputs.get(CRITIC), layout, algo, selection)
    metrics |= (
        _gap(sampling_N, outputs, algo) | _divergence(sampling_N, outputs, cfg) | _from_teacher(outputs)
    )
    metrics |= _summary(estimate, outputs.get(CRITIC))
    batch = TrainingBatch(
        layout,
        sampling_N,
        outputs.get(POLICY),
        _whitened(estimate) if algo.whiten_advantages else estimate.advantages_N,
        estimate.returns_N,
        estimate.value_mask_N,
        torch.ones_like(sampling_N),
        torch.where(layout.thoughts_N, algo.thought_weight, 1.0),
        outputs.get(CRITIC),
        outputs.get(REFERENCE),
        torch.ones_like(layout.groups_B, dtype=torch.bool),
    )
    if selection is not None:
        batch = replace(batch, learnt_B=selection.learnt_B, pairs_P2=selection.pairs_P2)
        return batch, metrics | selection.metrics
    return _corrected(batch, cfg, metrics)


def _layout(trajectories: Sequence[Trajectory]) -> TokenLayout:
    try:
        return TokenLayout.of(
            [[len(turn.answer_ids) for turn in t.turns] for t in trajectories],
            [t.group for t in trajectories],
            [[turn.thought_tokens for turn in t.turns] for t in trajectories],
            [[turn.opens_sample for turn in t.turns] for t in trajectories],
        )
    except ValueError as error:
        raise LearnerError(f"the batch cannot be learnt from: {error}") from error


def _rewards(
    trajectories: Sequence[Trajectory],
    layout: TokenLayout,
    sampling_N: Tensor,
    outputs: dict[str, Tensor],
    cfg: Config,
) -> tuple[Tensor, Metrics]:
    """The rewards of tokens, and the share of groups without signal: all their episodes earned the same.

    With a teacher its log ratios take the place of the environment's rewards, which are measured alone.
    """
    algo = cfg.algo
    earned_U = torch.tensor([turn.reward for t in trajectories for turn in t.turns], dtype=torch.float32)
    totals_B = earned_U.new_zeros(len(trajectories)).index_add(0, layout.episodes_U, earned_U)
    metrics = {"flat_groups": _share_of_groups(flat(totals_B, layout.groups_B), layout.groups_B)}
    if TABLE[algo.name].taught:
        graded_N = rewards.of_teacher(outputs[POLICY], outputs[TEACHER])
        return _less_kl(graded_N, sampling_N, outputs, cfg), metrics
    if algo.overlong_buffer and algo.reward_control is RewardControl.none:  # a control's rewards tell nothing
        lost_U = rewards.overlong(
            layout.lengths_U, cfg.rollout.max_new_tokens, algo.overlong_buffer, algo.overlong_penalty
        )
        earned_U, metrics["overlong_penalty"] = earned_U + lost_U, lost_U.sum().item() / len(trajectories)
    earned_U = earned_U * algo.reward_scale
    if algo.normalize_rewards:
        earned_U = rewards.normalized(earned_U, layout)
    return _less_kl(rewards.placed(earned_U, layout, algo.rewards), sampling_N, outputs, cfg), metrics


def _less_kl(rewards_N: Tensor, sampling_N: Tensor, outputs: dict[str, Tensor], cfg: Config) -> Tensor:
    algo = cfg.algo
    if algo.kl is not KlPlace.reward:
        return rewards_N
    coefficient_N = algo.kl_coef * kl_weights_of(cfg, outputs[POLICY], sampling_N)
    return rewards.less_kl(rewards_N, outputs[POLICY], outputs[REFERENCE], algo.kl_estimator, coefficient_N)


def _share_of_groups(marked_B: Tensor, groups_B: Tensor) -> float:
    sizes_B = torch.bincount(groups_B)[groups_B]
    return ((marked_B / sizes_B).sum() / (1.0 / sizes_B).sum()).item()


def _selected(
    row: Algorithm, trajectories: Sequence[Trajectory], rewards_N: Tensor, layout: TokenLayout
) -> Selection:
    if row.estimator is Estimator.success:
        return distinct_successes([t.success for t in trajectories], [t.token_ids for t in trajectories])
    return ranked_pairs(layout.per_episode(rewards_N.double()), layout.groups_B)


def _estimate(
    row: Algorithm,
    rewards_N: Tensor,
    values_N: Tensor | None,
    layout: TokenLayout,
    algo: AlgoConfig,
    selection: Selection | None,
) -> Estimate:
    if selection is not None:
        return by_selection(selection.advantages_B, rewards_N, layout, algo.gamma)
    if values_N is not None:
        return with_critic(row.estimator, rewards_N, values_N, layout, algo.gamma, algo.gae_lambda)
    by_turn = algo.rewards is Rewards.turn
    return without_critic(row.estimator, rewards_N, layout, algo.gamma, by_turn)


def _whitened(estimate: Estimate) -> Tensor:
    return whiten(estimate.advantages_N, *moments(estimate.advantages_N[estimate.value_mask_N]))


def _gap(sampling_N: Tensor, outputs: dict[str, Tensor], algo: AlgoConfig) -> Metrics:
    """The gap of engine and learner, if the policy's log-probs are known; else the first training pass measures it."""
    if POLICY not in outputs or algo.old_logprobs is OldLogprobs.engine:
        return {}
    gap = losses.engine_gap(sampling_N, outputs[POLICY], sampling_N.numel())
    return {name: value.item() for name, value in gap.items()}


def _divergence(sampling_N: Tensor, outputs: dict[str, Tensor], cfg: Config) -> Metrics:
    """The KL from the reference, if both log-probs are known; else the first training pass measures it."""
    if REFERENCE not in outputs:
        return {}
    metrics = {"kl_coef": cfg.algo.kl_coef}
    if POLICY in outputs:
        kl_N = losses.kl_k3(outputs[POLICY], outputs[REFERENCE])
        metrics["kl_reference"] = (kl_weights_of(cfg, outputs[POLICY], sampling_N) * kl_N).mean().item()
    return metrics


def _from_teacher(outputs: dict[str, Tensor]) -> Metrics:
    """KL(policy || teacher) per token by two estimators, if there is a teacher."""
    if TEACHER not in outputs:
        return {}
    policy_N, teacher_N = outputs[POLICY], outputs[TEACHER]
    return {
        "kl_teacher": losses.kl_k1(policy_N, teacher_N).mean().item(),
        "kl_teacher_k3": losses.kl_k3(policy_N, teacher_N).mean().item(),
    }


def _summary(estimate: Estimate, values_N: Tensor | None) -> Metrics:
    value_mask_N = estimate.value_mask_N
    returns_N = estimate.returns_N[value_mask_N]
    metrics = {
        "advantage_mean": estimate.advantages_N[value_mask_N].mean().item(),
        "return_mean": returns_N.mean().item(),
    }
    if values_N is not None:
        metrics["value_mean"] = values_N[value_mask_N].mean().item()
        metrics["explained_variance"] = explained_variance(values_N[value_mask_N], returns_N).item()
    return metrics


def _corrected(batch: TrainingBatch, cfg: Config, metrics: Metrics) -> tuple[TrainingBatch, Metrics]:
    """Add the weights of the surrogate's terms, if the engine's log-probs are to be corrected for."""
    if not corrects(cfg):
        return batch, metrics
    assert batch.old_logprobs_N is not None, "a correction makes the learner compute its log-probs first"
    weights_N, more = surrogate_weights(batch.old_logprobs_N, batch.sampling_N, batch.layout, cfg)
    batch = replace(batch, rollout_is_weights_N=weights_N)
    return batch, metrics | {name: value.item() for name, value in more.items()}
