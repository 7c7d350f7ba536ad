"""PPO and SFT steps on a backend without DeepSpeed, against a rewriting with full logits and plain autograd."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlpost.algorithms import objective, roles
from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import CRITIC, POLICY
from rlpost.config.schema import AlgoName, Config, KlEstimator, KlPlace, LoraConfig, OldLogprobs
from rlpost.errors import LearnerError
from rlpost.learner import update
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch
from rlpost.types import Ending, Trajectory
from tests.learner_data import (
    examples_of,
    plain_attention,
    random_episodes,
    small_config,
    with_algorithm,
    write_small_model,
)


class PlainBackend:
    """One rank, plain gradient descent; keeps each step's gradients and learning_rates."""

    def __init__(self, model: ActorCritic, cfg: Config) -> None:
        self.model, self.cfg, self.rendezvous = model, cfg.learner, SimpleNamespace(world_size=1, rank=0)
        self.steps: list[tuple[dict[str, torch.Tensor], dict[str, float]]] = []

    def forward(self, batch: MicroBatch, passes: tuple[str, ...], temperature: float) -> Outputs:
        return self.model(batch, passes, temperature)

    def step(
        self, losses: Iterable[torch.Tensor], count: int, learning_rates: dict[str, float], where: str
    ) -> Any:
        self.model.zero_grad()
        assert sum(1 for loss in losses if loss.backward() is None) == count
        grads = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.steps.append((grads, learning_rates))
        for name, rate in learning_rates.items():
            for p in self.model.parameters_of(name):
                p.data -= rate * (p.grad if p.grad is not None else 0.0)
        return {name: 1.0 for name, rate in learning_rates.items() if rate > 0}

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        return values

    largest = summed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture
def cfg() -> Config:
    found = small_config()
    found.algo.epochs = found.algo.minibatches = 1
    found.algo.warmup_steps = 1
    return found


def _backend(folder: Path, cfg: Config) -> PlainBackend:
    model = actor_critic.build(folder, cfg.dtype, LoraConfig(rank=4, alpha=8.0), 0, roles.ROLES, None)
    generator = torch.Generator().manual_seed(3)
    for name in (POLICY, CRITIC):
        for p in model.parameters_of(name):
            p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return PlainBackend(model, cfg)


def _full_forward(model: ActorCritic, episode: Trajectory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy table of log-probs, reference log-probs and values at an episode's sampled tokens; full logits."""
    if len(episode.samples) > 1:
        alone = [replace(episode, turns=sample) for sample in episode.samples]
        mine, reference, values = zip(*(_full_forward(model, each) for each in alone), strict=True)
        return torch.cat(mine), torch.cat(reference), torch.cat(values)
    ids = torch.tensor([episode.token_ids])
    at = [t for t, sampled in enumerate(episode.loss_mask) if sampled]
    before, chosen = torch.tensor(at) - 1, torch.tensor([episode.token_ids[t] for t in at])
    base = model.weights.base

    def table(adapter: str) -> torch.Tensor:
        model.weights.activate(adapter)
        with plain_attention(base):
            return torch.log_softmax(base(ids).logits[0], dim=-1)[before]

    mine, reference = table(POLICY), table(roles.REFERENCE).gather(1, chosen[:, None])[:, 0].detach()
    model.weights.activate(CRITIC)
    with plain_attention(base):
        hidden = base(ids, output_hidden_states=True).hidden_states[-1][0, before]
    values = hidden @ model.value_head.weight[0] + model.value_head.bias
    return (
        torch.cat([mine.gather(1, chosen[:, None]), -(mine.exp() * mine).sum(1, keepdim=True)], 1),
        reference,
        values,
    )


def _witness(model: ActorCritic, episodes: list[Trajectory], cfg: Config) -> dict[str, torch.Tensor]:
    """Gradients of the whole batch's PPO loss, token by token, at the start of the update (ratio 1)."""
    algo, per_token, advantages = cfg.algo, [], []
    for episode in episodes:
        mine, reference, values = _full_forward(model, episode)
        earned = [r for turn in episode.turns for r in (*[0.0] * (len(turn.answer_ids) - 1), turn.reward)]
        carried = after = 0.0
        found: list[float] = []
        for t in reversed(range(len(earned))):
            reward = earned[t] * algo.reward_scale
            if algo.kl is KlPlace.reward:
                reward -= algo.kl_coef * float(mine[t, 0].detach() - reference[t])
            value = float(values[t].detach())
            carried = reward + algo.gamma * after - value + algo.gamma * algo.gae_lambda * carried
            after = value
            found.insert(0, carried)
        per_token += [(mine[t, 0], mine[t, 1], values[t], reference[t], found[t]) for t in range(len(earned))]
        advantages += found
    mean = sum(advantages) / len(advantages)
    deviation = (sum((a - mean) ** 2 for a in advantages) / len(advantages)) ** 0.5
    loss = torch.zeros(())
    for logprob, entropy, value, reference_logprob, advantage in per_token:
        ratio = (logprob - logprob.detach()).exp()
        target = advantage + value.detach()
        loss = loss - ratio * (advantage - mean) / deviation - algo.entropy_coef * entropy
        loss = loss + algo.value_coef * 0.5 * (value - target) ** 2
        if algo.kl is KlPlace.loss:
            gap = reference_logprob - logprob
            loss = loss + algo.kl_coef * (gap.exp() - 1 - gap)
    model.zero_grad()
    (loss / len(per_token)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kl", [KlPlace.reward, KlPlace.loss])
@pytest.mark.parametrize("budget", [50, 1000])
def test_the_first_step_has_the_gradient_of_the_whole_batch(
    folder: Path, cfg: Config, kl: KlPlace, budget: int
) -> None:
    """Whether in one micro-batch or in many uneven ones."""
    cfg.algo.kl, cfg.algo.kl_coef, cfg.algo.entropy_coef = kl, 0.3, 0.05
    cfg.algo.kl_estimator = KlEstimator.k1 if kl is KlPlace.reward else KlEstimator.k3
    cfg.algo.gamma, cfg.algo.gae_lambda, cfg.learner.micro_batch_tokens = 0.9, 0.8, budget
    backend, episodes = _backend(folder, cfg), random_episodes(5)
    expected = _witness(backend.model, episodes, cfg)
    update.update_rl(backend, episodes, cfg, 0)
    (critic, critic_rates), (policys, policy_rates) = backend.steps
    assert not set(critic) & set(policys)
    assert critic_rates == {POLICY: 0.0, CRITIC: cfg.algo.critic_learning_rate}
    assert policy_rates == {POLICY: cfg.algo.learning_rate, CRITIC: 0.0}
    grads = critic | policys
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("budget", [50, 1000])
def test_samples_of_an_episode_are_rows_of_their_own_and_one_episode_in_time(
    folder: Path, cfg: Config, budget: int
) -> None:
    """No sample sees another's tokens, and the reward at the end reaches all of them."""
    cfg.algo.kl, cfg.algo.gamma, cfg.algo.gae_lambda, cfg.learner.micro_batch_tokens = (
        KlPlace.none,
        0.9,
        0.8,
        budget,
    )
    episodes = [
        replace(t, turns=tuple(replace(turn, opens_sample=k != 1) for k, turn in enumerate(t.turns)))
        for t in random_episodes(6, seed=4)
    ]
    assert {len(t.samples) for t in episodes} == {1, 2}
    backend = _backend(folder, cfg)
    expected = _witness(backend.model, episodes, cfg)
    asked = _watched(backend)
    metrics = update.update_rl(backend, episodes, cfg, 0)
    assert metrics["tokens"] == sum(t.answer_tokens for t in episodes)
    ((grads, _),) = backend.steps
    assert (CRITIC,) in asked, (
        "values are known before the step, as a micro-batch may hold part of an episode"
    )
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-3, atol=2e-5)


def test_metrics_of_the_first_step(folder: Path, cfg: Config) -> None:
    cfg.rollout.temperature = 1.0
    backend, episodes = _backend(folder, cfg), random_episodes(5)
    with torch.no_grad():
        parts = [_full_forward(backend.model, episode) for episode in episodes]
    sampling = torch.tensor([x for e in episodes for turn in e.turns for x in turn.logprobs])
    logprobs, entropy = torch.cat([mine for mine, _, _ in parts]).T
    reference = torch.cat([reference for _, reference, _ in parts])
    broken = [*random_episodes(1, 9, Ending.ENV_ERROR), *random_episodes(1, 8, Ending.ENV_TIMEOUT)]
    metrics = update.update_rl(backend, [*episodes, *broken], cfg, 0)
    gap = (sampling - logprobs).abs()
    ratio = (reference - logprobs).exp()
    assert metrics["logprob_gap"] == pytest.approx(gap.mean().item(), rel=1e-4)
    assert metrics["logprob_gap_max"] == pytest.approx(gap.max().item(), rel=1e-4)
    assert metrics["kl_reference"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), rel=1e-3)
    assert metrics["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert metrics["tokens"] == len(sampling)
    assert metrics["episodes_left_out"] == 2
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy_loss"] == pytest.approx(
        0.0, abs=1e-4
    )  # whitened advantages sum to zero at ratio 1


def test_tokens_are_those_that_the_passes_computed(folder: Path, cfg: Config) -> None:
    """Counted where they go through the model, shared prompts once: episodes of a group have theirs in common."""
    cfg.algo.epochs, cfg.algo.minibatches, cfg.learner.micro_batch_tokens = 2, 1, 400
    backend, episodes = _backend(folder, cfg), random_episodes(5)
    twins = [*episodes, *(replace(episode, episode=9) for episode in episodes)]  # of the same groups
    computed = {True: 0, False: 0}
    plain = backend.forward

    def forward(batch: MicroBatch, passes: tuple[str, ...], temperature: float) -> Outputs:
        computed[torch.is_grad_enabled()] += len(passes) * batch.input_ids_T.numel()
        return plain(batch, passes, temperature)

    backend.forward = forward  # type: ignore[method-assign]
    metrics = update.update_rl(backend, twins, cfg, 0)
    assert metrics["tokens/scored"] == computed[False]
    assert metrics["tokens/trained"] == computed[True]
    rows = sum(len(episode.token_ids) - 1 for episode in twins)
    assert metrics["tokens/trained"] < 2 * 2 * rows, "2 epochs of 2 passes"
    computed[True] = 0
    assert update.sft_step(backend, examples_of(episodes), cfg, 0)["tokens/trained"] == computed[True] > 0


def test_critic_warm_up_leaves_the_policy_alone(folder: Path, cfg: Config) -> None:
    cfg.algo.critic_warmup, cfg.algo.warmup_steps, cfg.algo.minibatches = 1, 4, 2
    backend, episodes = _backend(folder, cfg), random_episodes(5)
    before = backend.model.weights.tensors(POLICY)
    metrics = update.update_rl(backend, episodes, cfg, 0)
    assert all(torch.equal(t, before[n]) for n, t in backend.model.weights.tensors(POLICY).items())
    assert "policy_loss" not in metrics
    update.update_rl(backend, episodes, cfg, 1)
    full = (cfg.algo.learning_rate, cfg.algo.critic_learning_rate)
    shares = [s for _, r in backend.steps for s in (r[POLICY] / full[0], r[CRITIC] / full[1])]
    assert shares == pytest.approx([0, 0.25, 0, 0.5, 0.25, 0.75, 0.5, 1.0])


def _watched(backend: PlainBackend) -> list[tuple[str, ...]]:
    """The passes that the backend is asked for from now on."""
    passes: list[tuple[str, ...]] = []
    plain = backend.forward
    backend.forward = lambda b, p, t: passes.append(p) or plain(b, p, t)  # type: ignore[method-assign]
    return passes


def test_no_reference_pass_without_kl(folder: Path, cfg: Config) -> None:
    cfg.algo.kl = KlPlace.none
    backend = _backend(folder, cfg)
    passes = _watched(backend)
    assert "kl_reference" not in update.update_rl(backend, random_episodes(3), cfg, 0)
    assert set(passes) == {(CRITIC,), (POLICY,)}


def test_one_step_needs_no_pass_for_its_old_log_probs(
    folder: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, the pass changes no gradient and no metric."""
    cfg = with_algorithm(cfg, AlgoName.grpo)
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.algo.kl = KlPlace.loss
    lean = _backend(folder, cfg)
    passes = _watched(lean)
    metrics = update.update_rl(lean, random_episodes(4, group_size=2), cfg, 0)
    assert passes[0] == (roles.REFERENCE,)
    monkeypatch.setattr(objective, "_needs_old_logprobs", lambda algo: True)
    full = _backend(folder, cfg)
    expected = update.update_rl(full, random_episodes(4, group_size=2), cfg, 0)
    assert metrics.keys() == expected.keys()
    assert expected["tokens/scored"] == 2 * metrics["tokens/scored"]
    timed = {"seconds_logprobs", "seconds_update", "tokens/scored"}
    assert {k: v for k, v in metrics.items() if k not in timed} == pytest.approx(
        {k: v for k, v in expected.items() if k not in timed}, rel=1e-4, abs=1e-7
    )
    for name, grad in lean.steps[0][0].items():
        torch.testing.assert_close(grad, full.steps[0][0][name])


@pytest.mark.parametrize("name", [AlgoName.ppo, AlgoName.ppo_turn])
def test_a_critic_of_one_step_needs_no_pass_for_its_values(
    folder: Path, cfg: Config, name: AlgoName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, the pass changes no gradient and no metric, however the episodes fall into micro-batches."""
    cfg = with_algorithm(cfg, name)
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.algo.critic_warmup, cfg.algo.gamma, cfg.algo.gae_lambda, cfg.learner.micro_batch_tokens = (
        0,
        0.9,
        0.8,
        50,
    )
    episodes = random_episodes(5)
    lean, full = _backend(folder, cfg), _backend(folder, cfg)
    metrics = update.update_rl(lean, episodes, cfg, 0)
    for module in (objective, update):
        monkeypatch.setattr(module, "critic_steps_once", lambda algo: False)
    expected = update.update_rl(full, episodes, cfg, 0)
    assert len(full.steps) == 1
    passes = len(
        objective.roles_to_compute(cfg)
    )  # with that of the critic, as they were asked for in `expected`
    assert passes * metrics["tokens/scored"] == (passes - 1) * expected["tokens/scored"]
    timed = {"seconds_logprobs", "seconds_update", "tokens/scored"}
    assert {k: v for k, v in metrics.items() if k not in timed} == pytest.approx(
        {k: v for k, v in expected.items() if k not in timed}, rel=1e-4, abs=1e-6
    )
    grads = lean.steps[0][0] | lean.steps[1][0]
    assert grads.keys() == full.steps[0][0].keys()
    for parameter, grad in grads.items():
        torch.testing.assert_close(grad, full.steps[0][0][parameter], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_engines_log_probs_as_the_old_policy(folder: Path, cfg: Config, shift: float) -> None:
    """The ratio is then learner to engine: exp(-shift) where the engine's log-probs lie above by `shift`."""
    cfg.algo.old_logprobs, cfg.algo.kl = OldLogprobs.engine, KlPlace.none
    backend = _backend(folder, cfg)
    episodes = random_episodes(3)
    own = [table for table, _, _ in (_full_forward(backend.model, e) for e in episodes)]
    sampled = []
    for episode, table in zip(episodes, own, strict=True):
        logprobs = iter((table[:, 0] + shift).tolist())
        turns = (replace(t, logprobs=tuple(islice(logprobs, len(t.answer_ids)))) for t in episode.turns)
        sampled.append(replace(episode, turns=tuple(turns)))
    passes = _watched(backend)
    metrics = update.update_rl(backend, sampled, cfg, 0)
    assert passes[0] == (CRITIC,)
    assert metrics["ratio_max"] == pytest.approx(math.exp(-shift), rel=1e-4)
    assert metrics["logprob_gap"] == pytest.approx(shift, abs=1e-5)


@pytest.mark.parametrize("name", [AlgoName.grpo, AlgoName.reinforce_pp])
def test_without_a_critic_no_pass_asks_for_values(folder: Path, cfg: Config, name: AlgoName) -> None:
    """Neither before nor in the update; the critic has no gradient, no rate and no metric, and stays as it is."""
    cfg = with_algorithm(cfg, name)
    backend = _backend(folder, cfg)
    passes, before = _watched(backend), backend.model.weights.tensors(CRITIC)
    metrics = update.update_rl(backend, random_episodes(4, group_size=2), cfg, 0)
    assert {p for asked in passes for p in asked} == {POLICY, roles.REFERENCE}
    assert all(CRITIC not in n and "value_head" not in n for grads, _ in backend.steps for n in grads)
    assert all(learning_rates[CRITIC] == 0.0 < learning_rates[POLICY] for _, learning_rates in backend.steps)
    assert all(torch.equal(t, before[n]) for n, t in backend.model.weights.tensors(CRITIC).items())
    assert not {m for m in metrics if "value" in m or "variance" in m or "critic" in m}


def test_the_critic_may_take_more_passes(folder: Path, cfg: Config) -> None:
    """Two epochs of both, then two of the critic alone; each has its own warm-up."""
    cfg.algo.epochs, cfg.algo.critic_epochs, cfg.algo.minibatches, cfg.algo.warmup_steps = 2, 4, 2, 8
    backend = _backend(folder, cfg)
    passes = _watched(backend)
    metrics = update.update_rl(backend, random_episodes(4), cfg, 1)
    full = (cfg.algo.learning_rate, cfg.algo.critic_learning_rate)
    shares = [r[POLICY] / full[0] for _, r in backend.steps]
    assert shares == pytest.approx([5 / 8, 6 / 8, 7 / 8, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert [r[CRITIC] for _, r in backend.steps] == [full[1]] * 8  # its eight steps of warm-up are behind it
    assert [p for p in passes if roles.REFERENCE not in p][-1] == (CRITIC,)
    assert all(POLICY not in n.split(".") for grads, _ in backend.steps[4:] for n in grads)
    assert "policy_loss" in metrics


def test_minibatches_keep_groups_whole(folder: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = with_algorithm(cfg, AlgoName.grpo)
    cfg.algo.epochs, cfg.algo.minibatches = 2, 2
    taken: list[list[int]] = []
    step = update.take_step
    monkeypatch.setattr(update, "take_step", lambda *a: taken.append(list(a[1][-1].indices)) or step(*a))
    episodes = random_episodes(9, group_size=3)
    update.update_rl(_backend(folder, cfg), episodes[:8], cfg, 0)
    assert len(taken) == 4
    for epoch in (taken[:2], taken[2:]):
        groups = [{episodes[i].group for i in minibatch} for minibatch in epoch]
        assert sorted(i for minibatch in epoch for i in minibatch) == list(range(8))
        assert not groups[0] & groups[1]


def test_minibatches_follow_seed_iteration_and_epoch(folder: Path, cfg: Config) -> None:
    cfg.algo.epochs, cfg.algo.minibatches = 2, 2
    episodes = random_episodes(6)

    def first_gradient(iteration: int, seed: int) -> torch.Tensor:
        cfg.seed = seed
        backend = _backend(folder, cfg)
        update.update_rl(backend, episodes, cfg, iteration)
        assert len(backend.steps) == 4
        return backend.steps[0][0]["value_head.weight"]

    assert torch.equal(first_gradient(2, 0), first_gradient(2, 0))
    assert not torch.allclose(first_gradient(2, 0), first_gradient(3, 0), rtol=1e-3)
    assert not torch.allclose(first_gradient(2, 0), first_gradient(2, 1), rtol=1e-3)


def test_sft_learns_masked_tokens_only_and_never_the_critic(folder: Path, cfg: Config) -> None:
    cfg.sft.warmup_steps, cfg.learner.micro_batch_tokens = 1, 50
    backend, episodes = _backend(folder, cfg), random_episodes(5)
    logprobs = torch.cat([_full_forward(backend.model, episode)[0][:, 0] for episode in episodes])
    loss = -logprobs.mean()
    backend.model.zero_grad()
    loss.backward()
    expected = {n: p.grad.clone() for n, p in backend.model.named_parameters() if p.grad is not None}
    metrics = update.sft_step(backend, examples_of(episodes), cfg, 0)
    [(grads, learning_rates)] = backend.steps
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["tokens"] == len(logprobs)
    assert learning_rates == {POLICY: cfg.sft.learning_rate, CRITIC: 0.0}
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-3, atol=2e-5)


def test_an_empty_batch_is_refused(folder: Path, cfg: Config) -> None:
    with pytest.raises(LearnerError, match="empty"):
        update.update_rl(_backend(folder, cfg), random_episodes(2, ending=Ending.ENV_ERROR), cfg, 0)


def test_a_reward_that_is_not_finite_is_refused(folder: Path, cfg: Config) -> None:
    episode = random_episodes(1)[0]
    turns = tuple(turn.__class__(**(turn.__dict__ | {"reward": float("nan")})) for turn in episode.turns)
    bad = episode.__class__(**(episode.__dict__ | {"turns": turns}))
    with pytest.raises(LearnerError, match="not finite"):
        update.update_rl(_backend(folder, cfg), [bad], cfg, 0)
