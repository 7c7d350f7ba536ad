"""The KL to the reference on tokens that another policy sampled: by enumeration, by hand, and where it is weighted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlpost.algorithms import objective
from rlpost.algorithms.losses import KL_ESTIMATORS, kl_k3
from rlpost.algorithms.rollout_correction import KL_WEIGHT_CAP, kl_weights
from rlpost.config.rollout_correction import weighs_kl
from rlpost.config.schema import (
    AlgoName,
    Config,
    KlEstimator,
    KlPlace,
    OldLogprobs,
    RolloutIS,
    RolloutPolicy,
    RolloutReject,
)
from tests.numerics.test_algorithms import Numbers, _config, _episodes

WORDS = 6


def _distribution(seed: int, spread: float) -> Tensor:
    return torch.log_softmax(
        spread * torch.randn(WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 0
    )


@given(st.integers(0, 99), st.sampled_from([KlEstimator.k2, KlEstimator.k3]))
def test_the_expected_gradient_on_anothers_tokens_is_that_on_the_policys_own(
    seed: int, estimator: KlEstimator
) -> None:
    """Every word is enumerated with its probability; no weight is above the cap here."""
    logits = _distribution(seed, 0.3).requires_grad_()
    reference, sampler = _distribution(seed + 100, 1.0), _distribution(seed + 200, 0.05)
    policy = torch.log_softmax(logits, 0)
    weights = kl_weights(policy, sampler)
    assert weights.max() < KL_WEIGHT_CAP
    each = KL_ESTIMATORS[estimator](policy, reference)
    own, anothers = ((chances.exp().detach() * each).sum() for chances in (policy, sampler))
    weighted = (sampler.exp() * weights * each).sum()
    (by_own,) = torch.autograd.grad(own, logits, retain_graph=True)
    (by_another,) = torch.autograd.grad(anothers, logits, retain_graph=True)
    (found,) = torch.autograd.grad(weighted, logits)
    torch.testing.assert_close(found, by_own)
    assert not torch.allclose(by_another, by_own, rtol=1e-3)


@given(st.floats(-60, -0.01), st.floats(-5, -0.01), st.floats(-5, -0.01))
def test_a_word_that_the_policy_has_made_rare_counts_by_the_sampler(
    policy: float, sampler: float, reference: float
) -> None:
    p, e, r = (torch.tensor([x], dtype=torch.float64) for x in (policy, sampler, reference))
    weighted = (kl_weights(p, e) * kl_k3(p, r)).item()
    # w k3 = r/e - w (1 + log(r/p)), and |w log w| is bounded.
    assert weighted <= math.exp(reference - sampler) + KL_WEIGHT_CAP * (1 + abs(sampler) + abs(reference))
    if policy < -30:
        assert kl_k3(p, r).item() > 1e6 * weighted


def _stale(place: KlPlace, **settings: Any) -> Config:
    cfg = _config(AlgoName.grpo)
    cfg.algo.kl, cfg.algo.kl_estimator, cfg.algo.kl_coef = place, KlEstimator.k3, 0.5
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.rollout.lag = 2
    for name, value in settings.items():
        group = cfg.rollout if name in ("lag", "max_staleness", "policy") else cfg.algo
        setattr(group, name, value)
    return cfg


WEIGHTED: dict[str, dict[str, Any]] = {
    "by default": {},
    "streaming": {"lag": 0, "max_staleness": 1},
    "mask": {"rollout_is": RolloutIS.mask},
    "reject": {
        "rollout_is": RolloutIS.none,
        "rollout_reject": RolloutReject.geometric,
        "rollout_reject_cap": 1.5,
    },
    "coupled": {"old_logprobs": OldLogprobs.engine},
    "offline": {"lag": 0, "policy": RolloutPolicy.start},
}
PLAIN: dict[str, dict[str, Any]] = {
    "current answers": {"lag": 0},
    "current answers, corrected": {"lag": 0, "rollout_is": RolloutIS.truncate},
    "uncorrected": {"rollout_is": RolloutIS.none},
}


@pytest.mark.parametrize("case", [*WEIGHTED, *PLAIN])
def test_the_penalty_in_the_loss(case: str) -> None:
    cfg, episodes = _stale(KlPlace.loss, **(WEIGHTED | PLAIN)[case]), _episodes()
    numbers = Numbers(episodes)
    credit, _ = numbers.credit(episodes, cfg)
    slots = torch.arange(len(numbers.old))
    outputs = objective.Outputs(numbers.new, torch.ones(len(slots)))
    _, metrics = objective.minibatch_loss(credit, range(len(episodes)), cfg)(outputs, slots)
    by_hand = 0.0
    for new, engine, ref in zip(
        numbers.new.tolist(), credit.sampling_N.tolist(), credit.reference_N.tolist(), strict=True
    ):
        k3 = math.exp(ref - new) - 1 - (ref - new)
        by_hand += k3 * (min(math.exp(new - engine), 2.0) if case in WEIGHTED else 1.0)
    assert weighs_kl(cfg) == (case in WEIGHTED)
    assert metrics["kl_loss"].item() == pytest.approx(by_hand / len(slots), rel=1e-5)


@pytest.mark.parametrize("case", [case for case in (*WEIGHTED, *PLAIN) if case != "coupled"])
def test_the_penalty_in_the_reward_and_the_metric(case: str) -> None:
    settings, episodes = (WEIGHTED | PLAIN)[case], _episodes()
    numbers = Numbers(episodes)
    free = _stale(KlPlace.none, **settings)
    charged = _stale(KlPlace.reward, **settings)
    for cfg in (free, charged):
        cfg.algo.name, cfg.algo.whiten_advantages = AlgoName.reinforce_pp, False
        cfg.algo.gamma = 1.0
    plain, _ = numbers.credit(episodes, free)
    lowered, metrics = numbers.credit(episodes, charged)
    old, engine, ref = (
        x.double() for x in (numbers.old.float(), plain.sampling_N, numbers.reference.float())
    )
    k3 = torch.expm1(ref - old) - (ref - old)
    if case in WEIGHTED:
        k3 = k3 * (old - engine).exp().clamp_max(2.0)
    assert metrics["kl_reference"] == pytest.approx(k3.mean().item(), rel=1e-5)
    firsts = plain.layout.sample_starts_N
    # An episode's first token earns the whole return, less the KL of all its tokens.
    lost = (plain.returns_N - lowered.returns_N)[firsts]
    expected = torch.stack(
        [part.sum() for part in torch.split(0.5 * k3, [t.answer_tokens for t in episodes])]
    )
    torch.testing.assert_close(lost.double(), expected, rtol=1e-4, atol=1e-5)
