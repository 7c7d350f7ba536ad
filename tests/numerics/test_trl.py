"""Losses and gradients against TRL's own, where TRL has the algorithm; skipped where TRL is not installed.

TRL's loss is a method of its trainers; it is called here with a stand-in for the trainer that hands it log-probs.
Written against TRL 1.16. TRL adds 1e-4 to a group's standard deviation and rlpost 1e-6, hence the tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlpost.config.schema import AlgoName, KlPlace
from rlpost.types import Trajectory
from tests.numerics.test_algorithms import Numbers, _config, _episodes, _whole

pytest.importorskip("trl")

LOSS_TYPES = {
    AlgoName.grpo: ("grpo", "token"),
    AlgoName.dr_grpo: ("dr_grpo", "token"),
    AlgoName.dapo: ("dapo", "token"),
    AlgoName.cispo: ("cispo", "token"),
    AlgoName.gspo: ("grpo", "sequence"),
}


def _one_turn() -> list[Trajectory]:
    return [replace(t, turns=t.turns[:1]) for t in _episodes()]


def _rows(values_N: Tensor, episodes: list[Trajectory]) -> Tensor:
    return pad_sequence(list(values_N.split([t.answer_tokens for t in episodes])), batch_first=True)


def _trainer(logprobs_BT: Tensor, **settings: Any) -> SimpleNamespace:
    """What TRL's losses read of their trainer, in evaluation mode: one process, no accumulation."""
    single = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    plain = {
        "_get_per_token_logps_and_entropies": lambda *a, **k: (
            logprobs_BT,
            torch.ones_like(logprobs_BT),
            None,
        ),
        "model": SimpleNamespace(training=False),
        "accelerator": single,
        "_metrics": {"eval": defaultdict(list)},
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "current_gradient_accumulation_steps": 1,
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
    }
    return SimpleNamespace(**plain | settings)


def _inputs(episodes: list[Trajectory], **more: Tensor) -> dict[str, Tensor]:
    ids = _rows(torch.ones(sum(t.answer_tokens for t in episodes), dtype=torch.long), episodes)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": ids,
        "num_items_in_batch": ids.sum(),
        **more,
    }


def _grouped(episodes: list[Trajectory], scale: float) -> Tensor:
    return torch.tensor([t.total_reward * scale for t in episodes], dtype=torch.float64).view(-1, 4)


def _same(found: Tensor, expected: Tensor, numbers: Numbers) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-5)
    ours, theirs = (numbers.gradients(loss)[0] for loss in (found, expected))
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(LOSS_TYPES))
def test_the_family_of_grpo(name: AlgoName) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import nanstd

    cfg, episodes = _config(name), _one_turn()
    cfg.algo.overlong_buffer = 0
    numbers = Numbers(episodes)
    scores = _grouped(episodes, cfg.algo.reward_scale)
    advantages = scores - scores.mean(1, keepdim=True)
    if name is not AlgoName.dr_grpo:
        advantages = advantages / (nanstd(scores, dim=1)[:, None] + 1e-4)
    loss_type, level = LOSS_TYPES[name]
    high = cfg.algo.clip if cfg.algo.clip_high is None else cfg.algo.clip_high
    trainer = _trainer(
        _rows(numbers.new, episodes),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=cfg.algo.clip,
        epsilon_high=1.0 + high if name is AlgoName.cispo else high,  # TRL's is then the cap itself
        beta=cfg.algo.kl_coef if cfg.algo.kl is KlPlace.loss else 0.0,
        max_completion_length=cfg.rollout.max_new_tokens,
    )
    inputs = _inputs(
        episodes,
        advantages=advantages.flatten(),
        old_per_token_logps=_rows(numbers.old, episodes),
        ref_per_token_logps=_rows(numbers.reference, episodes),
    )
    _same(_whole(numbers, episodes, cfg), GRPOTrainer._compute_loss(trainer, None, inputs), numbers)


def test_rloo() -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    cfg, episodes = _config(AlgoName.rloo), _one_turn()
    numbers = Numbers(episodes)
    logprobs, old, reference = (_rows(x, episodes) for x in (numbers.new, numbers.old, numbers.reference))
    kl = (old - reference).sum(1).view(-1, 4)
    scores = _grouped(episodes, cfg.algo.reward_scale) - cfg.algo.kl_coef * kl
    advantages = scores - (scores.sum(1, keepdim=True) - scores) / 3
    trainer = _trainer(logprobs, epsilon_low=0.2, epsilon_high=0.2)
    inputs = _inputs(episodes, advantages=advantages.flatten(), old_logps=old.sum(1))
    _same(_whole(numbers, episodes, cfg), RLOOTrainer._compute_loss(trainer, None, inputs), numbers)
