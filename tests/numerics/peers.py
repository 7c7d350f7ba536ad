"""Corrections for the policy that played as other frameworks publish them, token by token on plain floats.

The witness of test_rollout_correction. A sequence is a list of tokens; nothing of rlpost is used. Read 2026-11-30, as
stored and not at the projects' heads: the source of verl's two DPPO losses (arXiv 2602.04879) and of prime-rl's masked
importance ratio (commit 008468c). The others follow descriptions alone: the settings of verl's rollout correction, of
TRL's four `vllm_importance_sampling_mode`s and of AReaL's decoupled PPO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Band = tuple[float, float]


@dataclass
class Token:
    engine: float  # log-prob when sampled
    old: float  # log-prob by the learner at the start of the update
    new: Tensor  # the same now: a scalar with gradient
    advantage: float

    @property
    def log_ratio(self) -> float:
        return self.old - self.engine


Sequence_ = Sequence[Token]


def ratio_of(tokens: Sequence_, level: str) -> list[float]:
    """The ratio learner / engine of each token: its own, the sequence's product, or its geometric mean."""
    if level == "token":
        return [math.exp(token.log_ratio) for token in tokens]
    total = sum(token.log_ratio for token in tokens)
    return [math.exp(total / (len(tokens) if level == "geometric" else 1))] * len(tokens)


def verl_weights(batch: Sequence[Sequence_], level: str, threshold: float | Band) -> list[float]:
    """A number truncates from above (TIS), a band sets what is outside it to 0 (IcePop)."""
    ratios = [ratio for tokens in batch for ratio in ratio_of(tokens, level)]
    if isinstance(threshold, tuple):
        return [ratio if threshold[0] <= ratio <= threshold[1] else 0.0 for ratio in ratios]
    return [min(ratio, threshold) for ratio in ratios]


def verl_kept(batch: Sequence[Sequence_], mode: str, band: Band) -> list[float]:
    """seq_sum_k1 and seq_mean_k1: 1 for each token of a sequence whose k1 lies within the logarithms of the band."""
    kept = []
    for tokens in batch:
        k1 = sum(-token.log_ratio for token in tokens)
        k1 = k1 / len(tokens) if mode == "seq_mean_k1" else k1
        inside = math.log(band[0]) <= -k1 <= math.log(band[1])
        kept += [1.0 if inside else 0.0] * len(tokens)
    return kept


def verl_ess(weights: Sequence[float]) -> float:
    """The inverse of the mean of the squared weights, which are divided by their mean first."""
    mean = sum(weights) / len(weights)
    return 1.0 / (sum((w / mean) ** 2 for w in weights) / len(weights))


def trl_weights(batch: Sequence[Sequence_], mode: str, cap: float) -> list[float]:
    level, _, how = mode.partition("_")
    found = []
    for tokens in batch:
        for ratio in ratio_of(tokens, level):
            found.append(min(ratio, cap) if how == "truncate" else 0.0 if ratio > cap else ratio)
    return found


def prime_rl_loss(batch: Sequence[Sequence_], band: Band) -> Tensor:
    """The ratio now / engine times the advantage, over tokens whose ratio lies within the band; a sum over tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for token in (token for tokens in batch for token in tokens):
        ratio = (token.new - token.engine).exp()
        if band[0] <= ratio.item() <= band[1]:
            total = total - ratio * token.advantage
    return total


def areal_loss(batch: Sequence[Sequence_], mode: str, cap: float, clip: float) -> Tensor:
    """PPO's clipped term around the proximal policy, times the weight proximal / behaviour; a mean over tokens."""
    terms = []
    for token in (token for tokens in batch for token in tokens):
        ratio = (token.new - token.old).exp()
        bounded = ratio.clamp(1 - clip, 1 + clip)
        term = torch.minimum(ratio * token.advantage, bounded * token.advantage)
        weight = math.exp(token.log_ratio)
        if weight > cap:
            weight = cap if mode == "token_truncate" else 0.0
        terms.append(-weight * term)
    return torch.stack(terms).mean()


def dppo_valid(old: float, new: float, advantage: float, divergence: str, most: float) -> bool:
    p, q = math.exp(new), math.exp(old)
    if divergence == "tv":
        return p - q <= most if advantage > 0 else p - q >= -most
    kl = q * (old - new) + (1 - q) * math.log((1 - q) / (1 - p))
    return kl <= most or (p <= q if advantage > 0 else p >= q)


def dppo_loss(batch: Sequence[Sequence_], divergence: str, most: float, ratio_cap: float) -> Tensor:
    """The log-prob times a truncated ratio without gradient, over valid tokens; a mean over all tokens."""
    terms = []
    for token in (token for tokens in batch for token in tokens):
        new = token.new.item()
        ratio = min(math.exp(new - token.old), ratio_cap)
        valid = dppo_valid(token.old, new, token.advantage, divergence, most)
        terms.append(-token.advantage * ratio * token.new * valid)
    return torch.stack(terms).mean()
