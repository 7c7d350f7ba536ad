"""The start that a learner keeps: what its distance is, and that measuring it changes nothing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlpost.algorithms import roles
from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AdapterKind, Dtype, LoraConfig
from rlpost.errors import CheckpointError, LearnerError
from rlpost.learner.kept_start import FILE, KeptStart
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import Row
from rlpost.learner.steps import Batch, compute_outputs
from tests.learner_data import plain_attention, random_episodes, small_config, write_small_model

TEMPERATURE = 0.7
OWN, OF_START = random_episodes(6, seed=1), random_episodes(5, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


class Learnt:
    """A policy with its start, without DeepSpeed."""

    def __init__(self, folder: Path, kind: AdapterKind = AdapterKind.lora) -> None:
        cfg = small_config()
        self.model: ActorCritic = actor_critic.build(
            folder, Dtype.float32, LoraConfig(kind=kind, rank=4, alpha=8.0), 0, roles.ROLES, None
        )
        summed = {"summed": lambda values: values, "whole": lambda *_: nullcontext()}
        backend: Any = SimpleNamespace(
            cfg=cfg.learner, rendezvous=SimpleNamespace(world_size=1, rank=0), forward=self.model, **summed
        )
        self.backend: Any = backend
        self.start = KeptStart(self.model.weights, backend, self.model.parameters_of(POLICY))
        self.budget = cfg.learner.micro_batch_tokens

    def logprobs(self, rows: list[Row]) -> torch.Tensor:
        batch = Batch.of(rows, self.budget)
        return compute_outputs(self.backend, batch, (POLICY,), self.budget, TEMPERATURE)[0][POLICY]

    def moved(self, by: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(3)
        for parameter in self.model.parameters_of(POLICY):
            parameter.data += by * torch.randn(parameter.shape, generator=generator)

    def distance(self) -> dict[str, float]:
        return self.start.distance(OWN, OF_START, self.logprobs)


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.full])
def test_a_policy_that_has_not_moved_is_at_distance_0(folder: Path, kind: AdapterKind) -> None:
    learnt = Learnt(folder, kind)
    learnt.start.keep()
    assert set(learnt.distance().values()) == {0.0}


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.full])
def test_the_distance_is_that_of_full_logits_and_the_policy_keeps_every_bit(
    folder: Path, kind: AdapterKind
) -> None:
    learnt = Learnt(folder, kind)
    learnt.start.keep()
    start = _logprobs_by_hand(learnt)
    learnt.moved(0.01 if kind is AdapterKind.full else 0.2)
    moved, before = _logprobs_by_hand(learnt), learnt.model.weights.tensors(POLICY)
    found = learnt.distance()
    after = learnt.model.weights.tensors(POLICY)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Of the policy's episodes log policy - log start, of the start's log start - log policy.
    for name, episodes, gap in (
        ("reverse", OWN, [m - s for m, s in zip(moved[0], start[0], strict=True)]),
        ("forward", OF_START, [s - m for m, s in zip(moved[1], start[1], strict=True)]),
    ):
        tokens = torch.cat(gap)
        assert len(gap) == len(episodes)
        assert found[f"{name}/k1_token"] == pytest.approx(float(tokens.mean()), rel=1e-4, abs=1e-5)
        assert found[f"{name}/k1_episode"] == pytest.approx(
            sum(float(each.sum()) for each in gap) / len(gap), rel=1e-4, abs=1e-5
        )
        assert found[f"{name}/k3_token"] == pytest.approx(
            float((torch.exp(-tokens) - 1 + tokens).mean()), abs=1e-4
        )
        assert abs(found[f"{name}/k1_token"]) > 1e-3


def _logprobs_by_hand(learnt: Learnt) -> list[list[torch.Tensor]]:
    """By episode, from the full logits of transformers' own forward."""
    weights = learnt.model.weights
    with torch.no_grad(), plain_attention(weights.base) as base, weights.using(POLICY):
        return [[_sampled(base, each) for each in episodes] for episodes in (OWN, OF_START)]


def _sampled(base: Any, episode: Any) -> torch.Tensor:
    ids, mask = torch.tensor(episode.token_ids), torch.tensor(episode.loss_mask).bool()
    table = torch.log_softmax(base(ids[None]).logits[0].float() / TEMPERATURE, -1)
    return table[:-1].gather(1, ids[1:, None])[:, 0][mask[1:]]


def test_a_checkpoint_has_the_start(folder: Path, tmp_path: Path) -> None:
    learnt = Learnt(folder)
    learnt.start.keep()
    learnt.moved()
    expected = learnt.distance()
    learnt.start.save(tmp_path, writes=False)
    assert not (tmp_path / FILE).exists()
    learnt.start.save(tmp_path, writes=True)
    assert load_file(tmp_path / FILE).keys() == learnt.model.weights.tensors(POLICY).keys()
    other = Learnt(folder)
    other.moved()
    other.start.load(tmp_path)
    assert other.distance() == expected


def test_without_a_start_there_is_no_distance(folder: Path, tmp_path: Path) -> None:
    learnt = Learnt(folder)
    with pytest.raises(LearnerError, match="no start was kept"):
        learnt.distance()
    learnt.start.save(tmp_path, writes=True)
    with pytest.raises(CheckpointError, match=FILE):
        learnt.start.load(tmp_path)
