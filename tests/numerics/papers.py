"""Each algorithm's loss as its paper writes it, token by token on plain floats: the witness of test_algorithms.

Nothing of rlpost is used but the settings' numbers. A batch is a list of episodes, an episode a list of turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.config.schema import AlgoConfig


@dataclass
class Token:
    old: float
    reference: float
    old_value: float
    thought: bool
    new: Tensor  # scalar, with gradient
    value: Tensor
    teacher: float = 0.0


@dataclass
class PlayedTurn:
    tokens: list[Token]
    reward: float  # scaled


@dataclass
class Played:
    group: int
    turns: list[PlayedTurn]
    success: bool

    @property
    def tokens(self) -> list[Token]:
        return [token for turn in self.turns for token in turn.tokens]

    @property
    def total(self) -> float:
        return sum(turn.reward for turn in self.turns)


Batch = list[Played]


def _worse(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    bounded = min(max(ratio.item(), 1 - low), 1 + high) * advantage
    plain = ratio * advantage
    return plain if plain.item() <= bounded else torch.tensor(bounded, dtype=plain.dtype)


def _ratio(token: Token) -> Tensor:
    return (token.new - token.old).exp()


def _k1(token: Token) -> float:
    return token.old - token.reference


def _k3(token: Token) -> Tensor:
    gap = token.reference - token.new
    return gap.exp() - gap - 1


def _others(batch: Batch, i: int, scores: list[float], itself: bool) -> list[float]:
    return [s for j, s in enumerate(scores) if batch[j].group == batch[i].group and (itself or j != i)]


def _mean(xs: list) -> Tensor:  # type: ignore[type-arg]
    return sum(xs[1:], xs[0]) / len(xs)


def _group_normalized(batch: Batch, scores: list[float]) -> list[float]:
    found = []
    for i, score in enumerate(scores):
        group = _others(batch, i, scores, itself=True)
        found.append((score - statistics.mean(group)) / (statistics.stdev(group) + 1e-6))
    return found


def _group_centred(batch: Batch, scores: list[float]) -> list[float]:
    return [s - statistics.mean(_others(batch, i, scores, itself=True)) for i, s in enumerate(scores)]


def _whitened(xs: list[float]) -> list[float]:
    mean, variance = statistics.fmean(xs), statistics.pvariance(xs)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in xs]


def _gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, written out."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    count = len(deltas)
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]


def _critic_error(value: Tensor, old: float, target: float, clip: float) -> Tensor:
    near = old + min(max(value.item() - old, -clip), clip)
    plain = (value - target) ** 2
    return plain / 2 if plain.item() >= (near - target) ** 2 else torch.tensor((near - target) ** 2 / 2)


def ppo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages, targets = [], []
    for episode in batch:
        earned = []
        for turn in episode.turns:
            earned += [-algo.kl_coef * _k1(token) for token in turn.tokens]
            earned[-1] += turn.reward
        values = [token.old_value for token in episode.tokens]
        found = _gae(earned, values, algo.gamma, algo.gae_lambda)
        advantages += found
        targets += [a + v for a, v in zip(found, values, strict=True)]
    tokens = [token for episode in batch for token in episode.tokens]
    white = _whitened(advantages)
    policy = _mean([-_worse(_ratio(t), a, 0.2, 0.2) for t, a in zip(tokens, white, strict=True)])
    critic = _mean(
        [
            _critic_error(t.value, t.old_value, y, algo.value_clip)
            for t, y in zip(tokens, targets, strict=True)
        ]
    )
    return policy + algo.value_coef * critic


def ppo_turn(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    turns = [turn for episode in batch for turn in episode.turns]
    advantages, targets = [], []
    for episode in batch:
        values = [turn.tokens[0].old_value for turn in episode.turns]
        found = _gae([turn.reward for turn in episode.turns], values, 0.9, algo.gae_lambda)
        advantages += found
        targets += [a + v for a, v in zip(found, values, strict=True)]
    policy, critic = [], []
    for turn, advantage, target in zip(turns, _whitened(advantages), targets, strict=True):
        thought = [t.new - t.old for t in turn.tokens if t.thought]
        answer = [t.new - t.old for t in turn.tokens if not t.thought]
        zero = 0.0 * turn.tokens[0].new
        ratio = (algo.thought_weight * sum(thought, zero) + sum(answer, zero)).exp()
        bounded = ratio.clamp(0.9, 1.1) * advantage
        above = ratio.item() > 10
        policy.append(-bounded if above else -_worse(ratio, advantage, 0.1, 0.1))
        first = turn.tokens[0]
        critic.append(_critic_error(first.value, first.old_value, target, 0.1))
    return _mean(policy) + algo.value_coef * _mean(critic)


def grpo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages = _group_normalized(batch, [e.total for e in batch])
    return _mean(
        [
            _mean([-_worse(_ratio(t), a, 0.2, 0.2) + 0.04 * _k3(t) for t in episode.tokens])
            for episode, a in zip(batch, advantages, strict=True)
        ]
    )


def dr_grpo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages = _group_centred(batch, [e.total for e in batch])
    terms = [
        -_worse(_ratio(t), a, 0.2, 0.2) / (budget * len(batch))
        for episode, a in zip(batch, advantages, strict=True)
        for t in episode.tokens
    ]
    return sum(terms[1:], terms[0])


def rloo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    scores = [e.total - algo.kl_coef * sum(_k1(t) for t in e.tokens) for e in batch]
    terms = []
    for i, episode in enumerate(batch):
        advantage = scores[i] - statistics.mean(_others(batch, i, scores, itself=False))
        logprob = sum((t.new for t in episode.tokens), 0.0 * episode.tokens[0].new)
        ratio = (logprob - sum(t.old for t in episode.tokens)).exp()
        terms.append(-_worse(ratio, advantage, 0.2, 0.2))
    return _mean(terms)


def reinforce_pp(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages = [
        episode.total - algo.kl_coef * sum(_k1(t) for t in episode.tokens[k:])
        for episode in batch
        for k in range(len(episode.tokens))
    ]
    tokens = [t for episode in batch for t in episode.tokens]
    return _mean(
        [-_worse(_ratio(t), a, 0.2, 0.2) for t, a in zip(tokens, _whitened(advantages), strict=True)]
    )


def reinforce_pp_baseline(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    centred = _group_centred(batch, [e.total for e in batch])
    tokens = [t for episode in batch for t in episode.tokens]
    advantages = _whitened([a for e, a in zip(batch, centred, strict=True) for _ in e.tokens])
    return _mean(
        [
            -_worse(_ratio(t), a, 0.2, 0.2) + algo.kl_coef * (t.new - t.reference) ** 2 / 2
            for t, a in zip(tokens, advantages, strict=True)
        ]
    )


def _overlong(episode: Played, algo: AlgoConfig, budget: int) -> float:
    """Equation 13, a penalty for each answer."""
    lost, free = 0.0, budget - algo.overlong_buffer
    for turn in episode.turns:
        length = len(turn.tokens)
        if length > budget:
            lost -= 1.0
        elif length > free:
            lost += (free - length) / algo.overlong_buffer
    return lost


def dapo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    scores = [e.total + algo.reward_scale * _overlong(e, algo, budget) for e in batch]
    advantages = _group_normalized(batch, scores)
    return _mean(
        [
            -_worse(_ratio(t), a, 0.2, 0.28)
            for episode, a in zip(batch, advantages, strict=True)
            for t in episode.tokens
        ]
    )


def gspo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages = _group_normalized(batch, [e.total for e in batch])
    terms = []
    for episode, a in zip(batch, advantages, strict=True):
        ratio = _mean([t.new - t.old for t in episode.tokens]).exp()
        terms.append(-_worse(ratio, a, 3e-4, 4e-4))
    return _mean(terms)


def cispo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    advantages = _group_normalized(batch, [e.total for e in batch])
    return _mean(
        [
            -min(_ratio(t).item(), 5.0) * a * t.new
            for episode, a in zip(batch, advantages, strict=True)
            for t in episode.tokens
        ]
    )


def rft(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    """The mean negative log-likelihood of the tokens of answers that are right; no two of the batch are equal."""
    return _mean([-t.new for episode in batch if episode.success for t in episode.tokens])


def dpo(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    """arXiv 2305.18290, equation 7, on the best and the worst, the second best and the second worst of each group."""
    terms = []
    for group in sorted({episode.group for episode in batch}):
        ranked = sorted((e for e in batch if e.group == group), key=lambda e: -e.total)
        for i in range(len(ranked) // 2):
            winner, loser = ranked[i], ranked[-1 - i]
            if winner.total > loser.total:
                chosen = sum(t.new - t.reference for t in winner.tokens)
                rejected = sum(t.new - t.reference for t in loser.tokens)
                terms.append(-torch.sigmoid(algo.dpo_beta * chosen - algo.dpo_beta * rejected).log())
    return _mean(terms)


def opd(batch: Batch, algo: AlgoConfig, budget: int) -> Tensor:
    """Each token's advantage is its own negative reverse KL; the environment's rewards are in no term."""
    return _mean(
        [-_worse(_ratio(t), -(t.old - t.teacher), 0.2, 0.2) for episode in batch for t in episode.tokens]
    )


PAPERS: dict[str, Callable[[Batch, AlgoConfig, int], Tensor]] = {
    function.__name__: function
    for function in (
        ppo,
        ppo_turn,
        grpo,
        dr_grpo,
        rloo,
        reinforce_pp,
        reinforce_pp_baseline,
        dapo,
        gspo,
        cispo,
        rft,
        dpo,
        opd,
    )
}
