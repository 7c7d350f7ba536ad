"""On-policy distillation's loss against exact divergences: every sequence of a small categorical is enumerated."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlpost.algorithms import objective
from rlpost.algorithms.credit import TrainingBatch, assign_credit
from rlpost.algorithms.roles import POLICY, TEACHER
from rlpost.config.schema import AlgoName, Config, KlPlace
from rlpost.types import Ending, Finish, Trajectory, Turn
from tests.learner_data import random_episodes, small_config, with_algorithm

WORDS, LENGTH = 3, 3  # a vocabulary of 3, episodes of 3 tokens
STATES = sum(WORDS**k for k in range(LENGTH))  # prefixes of 0, 1 and 2 tokens
SEQUENCES = list(itertools.product(range(WORDS), repeat=LENGTH))


def _config(gamma: float) -> Config:
    cfg = with_algorithm(small_config(), AlgoName.opd)
    assert cfg.algo.gamma == 0.0, "the published default"
    cfg.algo.gamma = gamma
    return cfg


def _state(prefix: tuple[int, ...]) -> int:
    """The number of a prefix, shorter ones first."""
    return sum(WORDS**k for k in range(len(prefix))) + sum(w * WORDS**i for i, w in enumerate(prefix))


def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits with a gradient, its log-probs and the teacher's, each (states, words)."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(STATES, WORDS, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.log_softmax(torch.randn(STATES, WORDS, generator=generator, dtype=torch.float64), 1)
    return logits, torch.log_softmax(logits, 1), teacher


def _episode(words: tuple[int, ...], turns: int) -> Trajectory:
    """The words as one turn, or as one turn each with feedback between them. Its reward must not matter."""
    cuts = [words] if turns == 1 else [(word,) for word in words]
    played = [
        Turn((9,), part, (-1.0,) * len(part), "", "", Finish.STOP, float(sum(words)), "X", 0) for part in cuts
    ]
    return Trajectory("e", "v", "train", "i", 0, 0, 0, 0, tuple(played), Ending.TERMINATED, success=False)


def _logprobs(table: Tensor, words: tuple[int, ...]) -> Tensor:
    return torch.stack([table[_state(words[:t]), word] for t, word in enumerate(words)])


def _expected_gradient(gamma: float, turns: int) -> Tensor:
    """The gradient of the loss in the logits at ratio 1, as a mean over sequences that the student samples."""
    cfg = _config(gamma)
    logits, student, teacher = _tables()
    loss = torch.zeros((), dtype=torch.float64)
    for words in SEQUENCES:
        new, its = _logprobs(student, words), _logprobs(teacher, words)
        credit, _ = assign_credit([_episode(words, turns)], {POLICY: new.detach(), TEACHER: its}, cfg)
        outputs = objective.Outputs(new, torch.zeros(LENGTH))
        share, _ = objective.minibatch_loss(credit, [0], cfg)(outputs, torch.arange(LENGTH))
        loss = loss + new.detach().sum().exp() * share
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("turns", [1, LENGTH])
def test_with_gamma_one_the_gradient_is_that_of_the_exact_divergence(turns: int) -> None:
    """KL(student || teacher) over whole sequences, per token, by autograd through every probability."""
    logits, student, teacher = _tables()
    divergence = torch.zeros((), dtype=torch.float64)
    for words in SEQUENCES:
        new = _logprobs(student, words).sum()
        divergence = divergence + new.exp() * (new - _logprobs(teacher, words).sum())
    expected = torch.autograd.grad(divergence / LENGTH, logits)[0]
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(_expected_gradient(1.0, turns), expected, rtol=1e-5, atol=1e-7)


def test_with_gamma_zero_each_token_answers_for_its_own_divergence() -> None:
    """The divergence of the next token at each prefix, averaged over the prefixes that the student reaches, whose
    frequencies have no gradient."""
    logits, student, teacher = _tables()
    at_state = (student.exp() * (student - teacher)).sum(1)
    reached = torch.zeros(STATES, dtype=torch.float64)
    for words in SEQUENCES:
        probability = _logprobs(student, words).sum().exp().detach()
        for t in range(LENGTH):
            reached[_state(words[:t])] += probability
    expected = torch.autograd.grad((reached * at_state).sum() / LENGTH, logits)[0]
    found = _expected_gradient(0.0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (found - _expected_gradient(1.0, 1)).abs().max() > 1e-2


def _assigned(cfg: Config, count: int = 4, seed: int = 0) -> tuple[TrainingBatch, dict[str, float], Tensor]:
    episodes = random_episodes(count, seed)
    tokens = sum(t.answer_tokens for t in episodes)
    old, teacher = (-3 * torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))).unbind(0)
    batch, metrics = assign_credit(episodes, {POLICY: old, TEACHER: teacher}, cfg)
    return batch, metrics, teacher - old


def test_advantages_and_metrics_by_hand() -> None:
    """Log-probs -1, -2 | -1 of the student and -2, -1 | -1 of the teacher: log ratios -1, 1 | 0."""
    cfg = _config(0.5)
    first = _episode((0, 1), 1)
    second = replace(_episode((0,), 1), group=1)
    student, teacher = torch.tensor([-1.0, -2, -1]), torch.tensor([-2.0, -1, -1])
    batch, metrics = assign_credit([first, second], {POLICY: student, TEACHER: teacher}, cfg)
    torch.testing.assert_close(batch.advantages_N, torch.tensor([-1 + 0.5, 1, 0]))
    assert metrics["kl_teacher"] == pytest.approx(0.0)
    assert metrics["kl_teacher_k3"] == pytest.approx((math.exp(-1) + 1 - 1 + math.e - 1 - 1) / 3)


@given(st.integers(1, 6), st.integers(0, 50), st.floats(0, 1))
def test_rewards_enter_nowhere(count: int, seed: int, scale: float) -> None:
    """The advantages with gamma 0 are the log ratios, whatever the environment pays."""
    cfg = _config(0.0)
    cfg.algo.reward_scale = 1.0 + scale
    batch, metrics, log_ratios = _assigned(cfg, count, seed)
    assert torch.equal(batch.advantages_N, log_ratios)
    assert metrics["kl_teacher"] == pytest.approx(-log_ratios.double().mean().item(), abs=1e-5)


def test_a_penalty_to_the_reference_is_subtracted_from_the_teachers_reward() -> None:
    cfg = _config(0.0)
    cfg.algo.kl, cfg.algo.kl_coef = KlPlace.reward, 0.5
    outputs = {POLICY: torch.tensor([-1.0]), TEACHER: torch.tensor([-3.0]), "reference": torch.tensor([-2.0])}
    batch, _ = assign_credit([_episode((0,), 1)], outputs, cfg)
    torch.testing.assert_close(batch.advantages_N, torch.tensor([-2 - 0.5 * 1.0]))


def test_a_student_that_is_its_teacher_has_no_gradient() -> None:
    cfg = _config(0.0)
    episodes = random_episodes(3)
    tokens = sum(t.answer_tokens for t in episodes)
    old = -torch.rand(tokens)
    new = old.clone().requires_grad_()
    batch, metrics = assign_credit(episodes, {POLICY: old, TEACHER: old}, cfg)
    outputs = objective.Outputs(new, torch.zeros(tokens))
    loss, _ = objective.minibatch_loss(batch, range(3), cfg)(outputs, torch.arange(tokens))
    assert not torch.autograd.grad(loss, new)[0].any()
    assert metrics["kl_teacher"] == metrics["kl_teacher_k3"] == 0.0
