"""Updates of rft and dpo and a step of dft on a small model, against plain autograd with full logits; ranks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlpost.algorithms import roles
from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AlgoName, Config, OldLogprobs, SftLoss
from rlpost.learner import update
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.types import Trajectory
from tests.learner_data import examples_of, random_episodes, small_config, with_algorithm, write_small_model
from tests.unit.learner.test_update import PlainBackend, _backend, _full_forward

Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def config(name: AlgoName, budget: int = 50) -> Config:
    cfg = with_algorithm(small_config(), name)
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.algo.warmup_steps, cfg.learner.micro_batch_tokens = 1, budget
    return cfg


def played(right: Sequence[bool] = (True, False, False, True, True, False, False, False)) -> list[Trajectory]:
    """Two groups of four. The rewards of the right ones differ, and so do those of the wrong ones."""
    return [
        replace(t, success=success, turns=(*t.turns[:-1], replace(t.turns[-1], reward=success * 10.0 + i)))
        for i, (t, success) in enumerate(zip(random_episodes(8, group_size=4), right, strict=True))
    ]


def gradients(model: ActorCritic, loss: torch.Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-3, atol=2e-5)


def logprobs(model: ActorCritic, episode: Trajectory) -> torch.Tensor:
    return _full_forward(model, episode)[0][:, 0]


def reference(model: ActorCritic, episode: Trajectory) -> torch.Tensor:
    return _full_forward(model, episode)[1]


def test_rft_learns_the_distinct_right_answers_and_computes_no_others(folder: Path) -> None:
    episodes = played()
    episodes[4] = replace(episodes[3], episode=4, group=1)  # the same prompt and answers
    cfg = config(AlgoName.rft)
    cfg.algo.old_logprobs = OldLogprobs.engine  # as experiments have it; no old policy is read
    backend = _backend(folder, cfg)
    right = [episodes[0], episodes[3]]
    expected = gradients(backend.model, -torch.cat([logprobs(backend.model, t) for t in right]).mean())
    metrics = update.update_rl(backend, episodes, cfg, 0)
    [(found, _)] = backend.steps
    assert_equal(found, expected)
    assert metrics["kept_episodes"] == 0.25
    assert metrics["tokens"] == sum(t.answer_tokens for t in right)
    assert metrics["tokens/scored"] == 0
    assert metrics["tokens/trained"] <= sum(len(t.token_ids) for t in right)
    assert metrics.keys() >= {"policy_loss", "logprob_gap", "entropy", "flat_groups"}
    assert not metrics.keys() & {"ratio_max", "clip_fraction", "approx_kl", "kl_reference", "kl_coef"}


@pytest.mark.parametrize("name", [AlgoName.rft, AlgoName.dpo])
def test_where_nothing_is_chosen_no_step_is_taken(folder: Path, name: AlgoName) -> None:
    cfg = config(name)
    cfg.algo.epochs = cfg.algo.minibatches = 2
    backend = _backend(folder, cfg)
    flat = [replace(t, turns=(replace(t.turns[0], reward=1.0),)) for t in played([False] * 8)]
    metrics = update.update_rl(backend, flat, cfg, 0)
    assert backend.steps == []
    assert (metrics["kept_episodes"], metrics["tokens"], metrics["flat_groups"]) == (0.0, 0.0, 1.0)
    assert "policy_loss" not in metrics


def test_minibatches_share_the_groups_that_teach(folder: Path) -> None:
    """Of two groups one has no success: one step, not one without tokens."""
    cfg = config(AlgoName.rft)
    cfg.algo.minibatches = 2
    backend = _backend(folder, cfg)
    update.update_rl(backend, played([True, True, False, False] + [False] * 4), cfg, 0)
    assert len(backend.steps) == 1


def dpo_loss(model: ActorCritic, episodes: Sequence[Trajectory], beta: float) -> torch.Tensor:
    """TRL's sigmoid loss of the best with the worst and so on, of each group of four."""
    terms = []
    for group in (episodes[:4], episodes[4:]):
        ranked = sorted(group, key=lambda t: -t.total_reward)
        for won, lost in zip(ranked[:2], ranked[:1:-1], strict=True):
            chosen = (logprobs(model, won) - reference(model, won)).sum()
            rejected = (logprobs(model, lost) - reference(model, lost)).sum()
            terms.append(-torch.nn.functional.logsigmoid(beta * (chosen - rejected)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("budget", [50, 1000])
def test_dpos_gradient_is_that_of_whole_pairs(folder: Path, budget: int) -> None:
    """Whether the two episodes of a pair lie in one micro-batch or not. The reference takes part."""
    cfg, episodes = config(AlgoName.dpo, budget), played()
    backend = _backend(folder, cfg)
    loss = dpo_loss(backend.model, episodes, cfg.algo.dpo_beta)
    expected = gradients(backend.model, loss)
    metrics = update.update_rl(backend, episodes, cfg, 0)
    [(found, rates)] = backend.steps
    assert_equal(found, expected)
    assert rates[POLICY] > 0
    assert metrics["policy_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (metrics["paired_groups"], metrics["kept_episodes"]) == (1.0, 1.0)
    assert metrics["tokens/scored"] > metrics["tokens/trained"], "two passes without gradient, one with"


def test_dpo_weighs_pairs_anew_in_each_step(folder: Path) -> None:
    """The second step has the gradient of the loss at the policy that the first has made."""
    cfg, episodes = config(AlgoName.dpo), played()
    cfg.algo.epochs = 2
    backend = _backend(folder, cfg)
    update.update_rl(backend, episodes, cfg, 0)
    alone = _backend(folder, cfg)
    for parameter, value in zip(
        alone.model.parameters(), _after_one_step(folder, cfg, episodes), strict=True
    ):
        parameter.data.copy_(value)
    expected = gradients(alone.model, dpo_loss(alone.model, episodes, cfg.algo.dpo_beta))
    assert_equal(backend.steps[1][0], expected)


def _after_one_step(folder: Path, cfg: Config, episodes: list[Trajectory]) -> list[torch.Tensor]:
    backend = _backend(folder, cfg)
    once = replace(cfg, algo=replace(cfg.algo, epochs=1))
    update.update_rl(backend, episodes, once, 0)
    return [p.data for p in backend.model.parameters()]


def test_before_the_first_step_policy_and_start_are_one_and_dpos_loss_is_log_2(folder: Path) -> None:
    cfg = config(AlgoName.dpo)
    backend = _backend(folder, cfg)
    backend.model.weights.freeze_reference()
    metrics = update.update_rl(backend, played(), cfg, 0)
    assert metrics["policy_loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert metrics["dpo_margin"] == pytest.approx(0.0, abs=1e-6)


class Meeting:
    """All-reduces of ranks that are threads: every rank leaves its part and takes the sum or maximum."""

    def __init__(self, ranks: int) -> None:
        self.barrier, self.parts = threading.Barrier(ranks, timeout=60), dict[int, torch.Tensor]()

    def reduced(self, rank: int, values: torch.Tensor, largest: bool) -> torch.Tensor:
        self.parts[rank] = values
        self.barrier.wait()
        stacked = torch.stack([self.parts[r] for r in sorted(self.parts)])
        self.barrier.wait()
        return stacked.amax(0) if largest else stacked.sum(0)


class RankBackend(PlainBackend):
    """One of several ranks, each a thread with a model of its own."""

    def __init__(self, model: ActorCritic, cfg: Config, rank: int, meeting: Meeting, ranks: int) -> None:
        super().__init__(model, cfg)
        self.rendezvous = SimpleNamespace(world_size=ranks, rank=rank)
        self.meeting = meeting

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        return self.meeting.reduced(self.rendezvous.rank, values, largest=False)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        return self.meeting.reduced(self.rendezvous.rank, values, largest=True)


@pytest.mark.parametrize("name", [AlgoName.rft, AlgoName.dpo])
def test_two_ranks_equal_one(folder: Path, name: AlgoName) -> None:
    """The sum of their gradients, which DeepSpeed makes, and their metrics; one has the loser of the other's winner."""
    cfg, episodes = config(name), played()
    one, meeting = _backend(folder, cfg), Meeting(2)
    expected = update.update_rl(one, episodes, cfg, 0)
    ranks = [RankBackend(_backend(folder, cfg).model, cfg, rank, meeting, 2) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda rank: update.update_rl(rank, episodes, cfg, 0), ranks))
    for metrics in found:
        kept = {k: v for k, v in metrics.items() if not k.startswith(("seconds", "tokens/"))}
        assert kept == pytest.approx({k: expected[k] for k in kept}, rel=1e-4, abs=1e-6)
    (first, _), (second, _) = (rank.steps[0] for rank in ranks)
    assert_equal({n: first[n] + second[n] for n in first}, one.steps[0][0])


def test_dft_weighs_each_token_by_its_probability(folder: Path) -> None:
    cfg, episodes = config(AlgoName.ppo), random_episodes(5)
    cfg.sft.loss, cfg.sft.warmup_steps = SftLoss.dft, 1
    backend = _backend(folder, cfg)
    each = torch.cat([logprobs(backend.model, t) for t in episodes])
    loss = -(each.exp().detach() * each).mean()
    expected = gradients(backend.model, loss)
    metrics = update.sft_step(backend, examples_of(episodes), cfg, 0)
    [(found, _)] = backend.steps
    assert_equal(found, expected)
    assert metrics["dft_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(-each.mean().item(), rel=1e-4)


def test_the_roles_of_dpo_are_policy_and_reference() -> None:
    from rlpost.algorithms.roles import roles_for

    assert roles_for(config(AlgoName.dpo)) == (POLICY, roles.REFERENCE)
    assert roles_for(config(AlgoName.rft)) == (POLICY,)
