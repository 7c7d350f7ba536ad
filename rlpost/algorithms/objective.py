"""The loss of a minibatch, micro-batch by micro-batch; the formulas are in rlpost.algorithms.

what the passes found, slots of the tokens, Credit ─▶ surrogate - entropy bonus (+ KL) + value loss
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpost.algorithms import losses
from rlpost.algorithms.credit import Credit
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoConfig, Config, EngineCorrection, KlPlace, OldLogprobs


class Passes(NamedTuple):
    """What the passes over a micro-batch give for its N sampled tokens, each (N,) float32; None without that pass.

    A tuple, since DeepSpeed's ZeRO-3 looks for tensors in tuples, lists and dicts, and not in dataclasses.
    """

    logprobs_N: Tensor | None = None  # the policy's
    entropy_N: Tensor | None = None  # the policy's, in nats
    reference_N: Tensor | None = None  # the reference's log-probs
    values_N: Tensor | None = None  # the critic's

    def of(self, role: str) -> Tensor:
        """The log-probs of POLICY or REFERENCE, the values of CRITIC, whose pass was made."""
        found = {POLICY: self.logprobs_N, REFERENCE: self.reference_N, CRITIC: self.values_N}[role]
        assert found is not None, f"the {role} made no pass"
        return found


# (what a micro-batch's passes found, the slots of its tokens) -> its share of the loss, metrics
LossFunction = Callable[[Passes, Tensor], tuple[Tensor, losses.Metrics]]


def passes_of(algo: AlgoConfig) -> tuple[str, ...]:
    """What must be known of every token before the update."""
    policy = (POLICY,) if _needs_old_logprobs(algo) else ()
    reference = () if algo.kl is KlPlace.none else (REFERENCE,)
    critic = (CRITIC,) if TABLE[algo.name].critic and not critic_steps_once(algo) else ()
    return (*policy, *reference, *critic)


def critic_steps_once(algo: AlgoConfig) -> bool:
    """Whether the critic takes one step an update: its forward pass then gives the values that advantages are
    made of, and no pass before is needed."""
    return TABLE[algo.name].critic and (algo.critic_epochs or algo.epochs) * algo.minibatches == 1


def _needs_old_logprobs(algo: AlgoConfig) -> bool:
    """Whether the learner must score the batch before its first step: not when there is but one step, whose own
    forward pass gives the same numbers, unless they are wanted earlier."""
    if algo.old_logprobs is OldLogprobs.engine:
        return False
    early = algo.kl is KlPlace.reward or algo.engine_correction is not EngineCorrection.none
    return early or algo.epochs * algo.minibatches > 1 or algo.critic_warmup > 0


def minibatch_loss(credit: Credit, episodes: Sequence[int], cfg: Config) -> LossFunction:
    """The loss of a micro-batch as its share of that of the minibatch that `episodes` make."""
    algo = cfg.algo
    chosen_N = credit.layout.weights(episodes, TABLE[algo.name].aggregation, cfg.rollout.max_new_tokens)
    learnt = int((chosen_N > 0).sum())
    valued = int(((chosen_N > 0) & credit.counted_N).sum())

    def loss_of(found: Passes, slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        total, metrics = torch.zeros(()), losses.Metrics()
        if found.values_N is not None:
            loss, metrics = _value_loss(credit, slots_N, found.values_N.cpu(), algo, valued)
            total = algo.value_coef * loss
        if found.logprobs_N is not None and found.entropy_N is not None:
            logprobs_N, entropy_N = found.logprobs_N.cpu(), found.entropy_N.cpu()
            weights_N = chosen_N[slots_N]
            loss, more = _policy_terms(credit, slots_N, logprobs_N, entropy_N, weights_N, algo, learnt)
            total = total + loss
            metrics |= more | _first_look(credit, slots_N, logprobs_N, algo, learnt)
        return total, metrics

    return loss_of


def _value_loss(
    credit: Credit, slots_N: Tensor, values_N: Tensor, algo: AlgoConfig, valued: int
) -> tuple[Tensor, losses.Metrics]:
    assert credit.old_values_N is not None, "values come from a critic's pass"
    here_N = credit.counted_N[slots_N]
    at_M = slots_N[here_N]
    old_M, returns_M = credit.old_values_N[at_M], credit.returns_N[at_M]
    return losses.value_loss(values_N[here_N], old_M, returns_M, algo.value_clip, valued)


def _policy_terms(
    credit: Credit,
    slots_N: Tensor,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    weights_N: Tensor,
    algo: AlgoConfig,
    learnt: int,
) -> tuple[Tensor, losses.Metrics]:
    """Surrogate, less the entropy bonus, plus the KL penalty if it is in the loss."""
    row = TABLE[algo.name]
    old_N = logprobs_N.detach() if credit.old_logprobs_N is None else credit.old_logprobs_N[slots_N]
    clip = losses.Clip(algo.clip, algo.clip if algo.clip_high is None else algo.clip_high, algo.ratio_ceiling)
    log_ratio_N = losses.log_ratios(
        logprobs_N, old_N, credit.units_N(row.ratio)[slots_N], row.ratio, credit.emphasis_N[slots_N]
    )
    corrected_N = weights_N * credit.engine_weights_N[slots_N]
    total, metrics = losses.policy_loss(
        logprobs_N, log_ratio_N, credit.advantages_N[slots_N], corrected_N, row.surrogate, clip, learnt
    )
    entropy, found = losses.entropy_bonus(entropy_N, weights_N, learnt)
    total, metrics = total - algo.entropy_coef * entropy, metrics | found
    if algo.kl is KlPlace.loss and credit.reference_N is not None:
        kl, found = losses.kl_penalty(
            logprobs_N, credit.reference_N[slots_N], weights_N, algo.kl_estimator, learnt
        )
        total, metrics = total + algo.kl_coef * kl, metrics | found
    return total, metrics | losses.approx_kl(logprobs_N, old_N, learnt)


def _first_look(
    credit: Credit, slots_N: Tensor, logprobs_N: Tensor, algo: AlgoConfig, learnt: int
) -> losses.Metrics:
    """What the scoring pass would have told, had the policy had one."""
    if _needs_old_logprobs(algo):
        return {}
    metrics = losses.engine_gap(credit.sampling_N[slots_N], logprobs_N, learnt)
    if credit.reference_N is not None:
        kl_N = losses.kl_k3(logprobs_N.detach(), credit.reference_N[slots_N])
        metrics["kl_reference"] = kl_N.sum() / learnt
    return metrics
