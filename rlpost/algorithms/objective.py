"""The loss of a minibatch, one micro-batch at a time. The formulas are in rlpost.algorithms.losses.

outputs of the forward passes, slots of the tokens, TrainingBatch ─▶ surrogate - entropy bonus (+ KL) + value loss
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpost.algorithms import losses, trust_region
from rlpost.algorithms.credit import TrainingBatch
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, TEACHER
from rlpost.algorithms.rollout_correction import kl_weights_of
from rlpost.config.presets import TABLE, Surrogate
from rlpost.config.rollout_correction import corrects
from rlpost.config.schema import AlgoConfig, Config, KlPlace, OldLogprobs, TrustRegion


class Outputs(NamedTuple):
    """Outputs of the roles for a micro-batch's N sampled tokens, each (N,) float32; None if the role did not run.

    It is a tuple because DeepSpeed's ZeRO-3 looks for tensors in tuples, lists and dicts, but not in dataclasses.
    """

    logprobs_N: Tensor | None = None  # the policy's
    entropy_N: Tensor | None = None  # the policy's, in nats
    reference_N: Tensor | None = None  # the reference's log-probs
    values_N: Tensor | None = None  # the critic's
    teacher_N: Tensor | None = None  # the teacher's log-probs

    def of(self, role: str) -> Tensor:
        """The output of `role`: values of CRITIC, log-probs of the others."""
        outputs = {
            POLICY: self.logprobs_N,
            REFERENCE: self.reference_N,
            CRITIC: self.values_N,
            TEACHER: self.teacher_N,
        }[role]
        assert outputs is not None, f"the {role} made no pass"
        return outputs


_NO_CLIP = losses.Clip(1.0, math.inf)  # the trust region takes the place of the clip
# (a micro-batch's outputs, the slots of its tokens) -> its share of the loss, metrics
LossFunction = Callable[[Outputs, Tensor], tuple[Tensor, losses.Metrics]]


def roles_to_compute(cfg: Config, one_sample: bool = True) -> tuple[str, ...]:
    """The roles whose log-probs or values of every token are needed before the update.

    `one_sample`: whether every episode is one sample.
    """
    algo = cfg.algo
    policy = (POLICY,) if _needs_old_logprobs(cfg) else ()
    reference = () if algo.kl is KlPlace.none else (REFERENCE,)
    critic = (CRITIC,) if TABLE[algo.name].critic and not (one_sample and critic_steps_once(algo)) else ()
    teacher = (TEACHER,) if TABLE[algo.name].taught else ()
    return (*policy, *reference, *critic, *teacher)


def critic_steps_once(algo: AlgoConfig) -> bool:
    """Whether the critic takes one step per update. If every episode is one sample, the forward pass of that step gives
    the values for the advantages, and no separate pass is needed."""
    return TABLE[algo.name].critic and (algo.critic_epochs or algo.epochs) * algo.minibatches == 1


def _needs_old_logprobs(cfg: Config) -> bool:
    """Whether the policy's log-probs must be computed before the first step. If there is one step only, its own forward
    pass gives them, unless they are needed earlier."""
    algo = cfg.algo
    if algo.old_logprobs is OldLogprobs.engine or not TABLE[algo.name].has_ratio:
        return False
    early = algo.kl is KlPlace.reward or corrects(cfg) or TABLE[algo.name].taught
    return early or algo.epochs * algo.minibatches > 1 or algo.critic_warmup > 0


def minibatch_loss(
    batch: TrainingBatch, episodes: Sequence[int], cfg: Config, first: bool = True
) -> LossFunction:
    """The loss function of micro-batches. Each loss is a share of the loss of the minibatch of `episodes`.

    `first`: whether the policy has not moved since the start of the update.
    """
    algo = cfg.algo
    learnt = [b for b in episodes if batch.learnt_B[b]]
    chosen_N = batch.layout.weights(learnt, TABLE[algo.name].aggregation, cfg.rollout.max_new_tokens)
    policy_tokens = int((chosen_N > 0).sum())
    critic_tokens = int(((chosen_N > 0) & batch.value_mask_N).sum())

    def loss_of(outputs: Outputs, slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        total, metrics = torch.zeros(()), losses.Metrics()
        if outputs.values_N is not None:
            loss, metrics = _value_loss(batch, slots_N, outputs.values_N.cpu(), algo, critic_tokens)
            total = algo.value_coef * loss
        if outputs.logprobs_N is not None and outputs.entropy_N is not None:
            logprobs_N, entropy_N = outputs.logprobs_N.cpu(), outputs.entropy_N.cpu()
            weights_N = chosen_N[slots_N]
            loss, more = _policy_terms(batch, slots_N, logprobs_N, entropy_N, weights_N, cfg, policy_tokens)
            total = total + loss
            metrics |= more
            if first:
                metrics |= _first_look(batch, slots_N, logprobs_N, cfg, policy_tokens)
        return total, metrics

    return loss_of


def _value_loss(
    batch: TrainingBatch, slots_N: Tensor, values_N: Tensor, algo: AlgoConfig, critic_tokens: int
) -> tuple[Tensor, losses.Metrics]:
    assert batch.old_values_N is not None, "values come from a critic's pass"
    here_N = batch.value_mask_N[slots_N]
    at_M = slots_N[here_N]
    old_M, returns_M = batch.old_values_N[at_M], batch.returns_N[at_M]
    return losses.value_loss(values_N[here_N], old_M, returns_M, algo.value_clip, critic_tokens)


def _policy_terms(
    batch: TrainingBatch,
    slots_N: Tensor,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    weights_N: Tensor,
    cfg: Config,
    policy_tokens: int,
) -> tuple[Tensor, losses.Metrics]:
    """The surrogate, minus the entropy bonus, plus the KL penalty if it is in the loss."""
    algo = cfg.algo
    if TABLE[algo.name].has_ratio:
        total, metrics = _ratio_loss(batch, slots_N, logprobs_N, weights_N, algo, policy_tokens)
    else:
        total, metrics = losses.logprob_loss(logprobs_N, batch.advantages_N[slots_N], weights_N)
    entropy, more = losses.entropy_bonus(entropy_N, weights_N, policy_tokens)
    metrics |= more
    # A bonus with coefficient 0 would still cost its gradient, and with it another pass over the head's products.
    if algo.entropy_coef != 0.0:
        total = total - algo.entropy_coef * entropy
    if algo.kl is KlPlace.loss and batch.reference_N is not None:
        sampled_N = kl_weights_of(cfg, logprobs_N, batch.sampling_N[slots_N])
        kl, more = losses.kl_penalty(
            logprobs_N, batch.reference_N[slots_N], weights_N, algo.kl_estimator, policy_tokens, sampled_N
        )
        total, metrics = total + algo.kl_coef * kl, metrics | more
    return total, metrics


def _ratio_loss(
    batch: TrainingBatch,
    slots_N: Tensor,
    logprobs_N: Tensor,
    weights_N: Tensor,
    algo: AlgoConfig,
    policy_tokens: int,
) -> tuple[Tensor, losses.Metrics]:
    """The surrogate of algorithms with a probability ratio to the old policy."""
    row = TABLE[algo.name]
    old_N = logprobs_N.detach() if batch.old_logprobs_N is None else batch.old_logprobs_N[slots_N]
    clip = losses.Clip(algo.clip, algo.clip if algo.clip_high is None else algo.clip_high, algo.ratio_ceiling)
    log_ratio_N = losses.log_ratios(
        logprobs_N,
        old_N,
        batch.layout.units_N(row.ratio)[slots_N],
        row.ratio,
        batch.token_weights_N[slots_N],
    )
    corrected_N, advantages_N = weights_N * batch.rollout_is_weights_N[slots_N], batch.advantages_N[slots_N]
    measured = losses.approx_kl(logprobs_N, old_N, policy_tokens)
    if algo.trust_region is not TrustRegion.ratio:
        leaving_N = trust_region.leaving(
            old_N, logprobs_N, advantages_N, algo.trust_region, algo.max_divergence
        )
        corrected_N = corrected_N.masked_fill(leaving_N, 0.0)
        measured["outside_fraction"] = leaving_N.sum() / policy_tokens
        clip = clip if row.surrogate is Surrogate.clipped_weight else _NO_CLIP
    loss, metrics = losses.policy_loss(
        logprobs_N, log_ratio_N, advantages_N, corrected_N, row.surrogate, clip, policy_tokens
    )
    return loss, metrics | measured


def _first_look(
    batch: TrainingBatch, slots_N: Tensor, logprobs_N: Tensor, cfg: Config, policy_tokens: int
) -> losses.Metrics:
    """The gap and KL metrics, if no pass before the update has computed them."""
    if _needs_old_logprobs(cfg):
        return {}
    metrics = losses.engine_gap(batch.sampling_N[slots_N], logprobs_N, policy_tokens)
    if batch.reference_N is not None:
        kl_N = losses.kl_k3(logprobs_N.detach(), batch.reference_N[slots_N])
        weights_N = kl_weights_of(cfg, logprobs_N, batch.sampling_N[slots_N])
        metrics["kl_reference"] = (weights_N * kl_N).sum() / policy_tokens
    return metrics
