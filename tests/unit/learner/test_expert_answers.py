"""Expert answers in the steps of RL: the loss against a sum by hand, SFT's step as a limit, and who takes which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlpost.algorithms.roles import CRITIC, POLICY, ROLES
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoName, Config, Dtype, KlPlace, LoraConfig
from rlpost.learner import update
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.types import Trajectory
from rlpost.weights.adapters import Adapter
from tests.learner_data import examples_of, random_episodes, small_config, with_algorithm, write_small_model
from tests.unit.learner.test_update import PlainBackend, _full_forward, _witness

LORA = LoraConfig(rank=4, alpha=8.0)
EXPERTS = examples_of(random_episodes(7, seed=9))
EPISODES = random_episodes(6, group_size=2)
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def _config(name: AlgoName = AlgoName.ppo, steps: int = 1) -> Config:
    cfg = with_algorithm(small_config(), name)
    cfg.algo.epochs, cfg.algo.minibatches, cfg.algo.warmup_steps = 1, steps, 0
    cfg.algo.expert_coef, cfg.sft.warmup_steps = 0.3, 0
    return cfg


def _model(folder: Path, teacher: Adapter | None = None) -> ActorCritic:
    model = actor_critic.build(folder, Dtype.float32, LORA, 0, ROLES, None, (), teacher)
    generator = torch.Generator().manual_seed(3)
    for name in (POLICY, CRITIC):
        for p in model.parameters_of(name):
            p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def _teacher(folder: Path) -> Adapter:
    model = _model(folder)
    return Adapter.create(*model.weights.export(), version=1)


def _equal(found: Gradients, expected: Gradients) -> None:
    assert set(found) == set(expected)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-3, atol=2e-5)


def _steps(
    model: ActorCritic, cfg: Config, examples: bool = True, episodes: list[Trajectory] = EPISODES
) -> tuple[list[Gradients], dict[str, float]]:
    backend = PlainBackend(model, cfg)
    given = EXPERTS if examples else []
    metrics = update.update_rl(backend, episodes, cfg, 0, given)  # type: ignore[arg-type]
    return [grads for grads, _ in backend.steps], metrics


def _by_hand(model: ActorCritic, examples: range, weight: float) -> tuple[Gradients, float]:
    """The gradient of `weight` times the mean negative log-likelihood, from full logits; and that mean."""
    talks = random_episodes(7, seed=9)
    logprobs = torch.cat([_full_forward(model, talks[i])[0][:, 0] for i in examples])
    model.zero_grad()
    (-weight * logprobs.mean()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return grads, -float(logprobs.detach().mean())


@pytest.mark.parametrize("budget", [50, 1000])
def test_the_gradient_is_the_algorithms_plus_the_weighted_mean_by_hand(folder: Path, budget: int) -> None:
    cfg = _config()
    cfg.algo.kl, cfg.learner.micro_batch_tokens = KlPlace.none, budget
    model = _model(folder)
    alone = _witness(model, EPISODES, cfg)
    experts, loss = _by_hand(model, range(7), 0.3)
    (critic, policy), metrics = _steps(model, cfg)
    _equal(critic | policy, {name: grad + experts.get(name, 0.0) for name, grad in alone.items()})
    assert metrics["expert_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", AlgoName)
def test_with_every_algorithm_it_is_added_to_the_policys_step(folder: Path, name: AlgoName) -> None:
    """At temperature 1, whatever the rollout's, with the old log-probs of each algorithm's own first step."""
    cfg = _config(name)
    cfg.rollout.temperature = 0.7
    teacher = _teacher(folder) if TABLE[name].taught else None
    played = [replace(episode, success=episode.episode % 2 == 0) for episode in EPISODES]  # which rft asks
    mixed, metrics = _steps(_model(folder, teacher), cfg, episodes=played)
    alone, without = _steps(_model(folder, teacher), cfg, examples=False, episodes=played)
    experts, _ = _by_hand(_model(folder), range(7), 0.3)
    _equal(mixed[-1], {n: grad + experts[n] if n in experts else grad for n, grad in alone[-1].items()})
    assert all(torch.equal(mixed[0][n], grad) for n, grad in alone[0].items() if CRITIC in n.split("."))
    assert "expert_loss" not in without
    assert metrics["tokens/trained"] > without["tokens/trained"]


def test_where_no_episode_teaches_the_expert_still_does(folder: Path) -> None:
    """rft without a success."""
    found, metrics = _steps(_model(folder), _config(AlgoName.rft))
    experts, loss = _by_hand(_model(folder), range(7), 0.3)
    _equal(found[0], experts)
    assert (len(found), metrics["kept_episodes"]) == (1, 0.0)
    assert metrics["expert_loss"] == pytest.approx(loss, rel=1e-4)
    assert _steps(_model(folder), _config(AlgoName.rft), examples=False)[0] == []


@pytest.mark.parametrize("name", [AlgoName.grpo, AlgoName.opd])
def test_without_advantages_a_step_is_a_step_of_sft(folder: Path, name: AlgoName) -> None:
    """Groups of equal rewards; a student that is its teacher. The same gradient, weight for weight, and the same
    adapter after it."""
    cfg = _config(name)
    cfg.algo.expert_coef, cfg.algo.kl, cfg.sft.learning_rate = 1.0, KlPlace.none, cfg.algo.learning_rate
    flat = [t for t in random_episodes(6, group_size=6) if t.total_reward == 0] * 2
    flat = [Trajectory(**{**t.__dict__, "group": 0}) for t in flat]
    assert len(flat) >= 2
    teacher = _teacher(folder) if TABLE[name].taught else None
    model, plain = _model(folder, teacher), _model(folder)
    [found], _ = _steps(model, cfg, episodes=flat)
    backend = PlainBackend(plain, cfg)
    metrics = update.sft_step(backend, EXPERTS, cfg, 0)  # type: ignore[arg-type]
    [(expected, rates)] = backend.steps
    assert rates[POLICY] == cfg.algo.learning_rate
    assert set(found) == set(expected)
    for parameter, grad in found.items():
        torch.testing.assert_close(grad, expected[parameter], rtol=1e-6, atol=1e-8)
    for parameter, tensor in model.weights.tensors(POLICY).items():
        torch.testing.assert_close(tensor, plain.weights.tensors(POLICY)[parameter], rtol=1e-6, atol=1e-8)
    assert metrics["loss"] > 0


def test_every_answer_is_in_one_step_of_the_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven answers, four steps; two more epochs of the critic alone take none."""
    cfg = _config(steps=2)
    cfg.algo.epochs, cfg.algo.critic_epochs = 2, 3
    taken: list[list[tuple[int, ...]]] = []
    step = update.take_step

    def noted(backend: object, parts: list[update.Part], *rest: object) -> object:
        *experts, own = parts
        assert all(part.roles == (POLICY,) and part.temperature == 1.0 for part in experts)
        assert len(experts) == (POLICY in own.roles), "and the last part has every role that learns"
        taken.extend([tuple(row.token_ids) for row in part.batch.rows] for part in experts)
        return step(backend, parts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(update, "take_step", noted)
    _, metrics = _steps(_model(folder), cfg)
    assert [len(rows) for rows in taken] == [2, 2, 2, 1]
    assert [row for rows in taken for row in rows] == [example.token_ids for example in EXPERTS]
    assert metrics["expert_loss"] > 0
