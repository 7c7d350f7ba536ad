"""One PPO update and one SFT step on this rank; the formulas are in rlpost.algorithms.

    trajectories ─▶ Batch (rows; flat sampling log-probs and rewards, N sampled tokens in all)
       ─▶ passes without gradient, each rank its share, shared by all-reduce: policy, reference, values (N)
       ─▶ rewards less KL ─▶ GAE ─▶ whitening            every rank does the same sums on the same numbers
       ─▶ epochs x minibatches: shares of the minibatch's loss by rank ─▶ DeepSpeedBackend.step

Which episodes make a minibatch depends on (seed, iteration, epoch) alone, never on the number of ranks, and
denominators count the tokens of the whole minibatch: two ranks take the step that one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlpost.algorithms import losses, rewards
from rlpost.algorithms.advantages import explained_variance, gae, moments, whiten
from rlpost.config import Config, KlPlace
from rlpost.errors import LearnerError
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.packing import Row, check_rows, collate, plan_micro_batches, slot_starts
from rlpost.learner.policy import CRITIC, POLICY, REFERENCE
from rlpost.learner.sharing import Group
from rlpost.types import Ending, Example, Trajectory

Metrics = dict[str, float]
LossFunction = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, losses.Metrics]]


@dataclass(frozen=True)
class Batch:
    """Rows of one update and where their counted tokens lie in the flat numbering."""

    rows: list[Row]
    starts: list[int]

    @classmethod
    def of(cls, rows: list[Row], budget: int) -> Batch:
        if not rows:
            raise LearnerError("the batch is empty: no episode or example has a token to learn from")
        check_rows(rows, budget)
        return cls(rows, slot_starts(rows))

    @property
    def tokens(self) -> int:
        return self.starts[-1]

    def counted(self, indices: Sequence[int]) -> int:
        return sum(self.rows[i].counted for i in indices)


@dataclass(frozen=True)
class Credit:
    """Flat tensors (N,) that stay fixed during an update's epochs."""

    old_logprobs_N: Tensor
    old_values_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor
    reference_N: Tensor | None


def learnable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Episodes the policy answers for: with a sampled token, and not broken by the environment."""
    return [t for t in trajectories if t.answer_tokens and t.ending is not Ending.ENV_ERROR]


def score(
    backend: DeepSpeedBackend, batch: Batch, passes: tuple[str, ...], budget: int, temperature: float
) -> dict[str, Tensor]:
    """Run `passes` over the batch without gradients; returns flat (N,) tensors, whole on every rank."""
    flat = {name: torch.zeros(batch.tokens) for name in passes}
    with torch.no_grad():
        for groups in _share(backend, batch, range(len(batch.rows)), budget):
            micro = collate(batch.rows, batch.starts, groups)
            found = backend.forward(micro, passes, temperature)
            for name in passes:
                values_N = found[name][0] if name == POLICY else found[name]
                flat[name][micro.slots_N] = values_N.float().cpu()
    summed = backend.summed(torch.stack([flat[name] for name in passes]))
    return dict(zip(passes, summed.unbind(0), strict=True))


def ppo_update(
    backend: DeepSpeedBackend, trajectories: Sequence[Trajectory], cfg: Config, iteration: int
) -> Metrics:
    """One iteration of PPO on `trajectories`, all of them given to every rank; `iteration` counts from 0.

    Raises LearnerError for a batch without sampled tokens, rows that do not fit, non-finite losses or gradients.
    """
    started = time.perf_counter()
    kept = learnable(trajectories)
    budget, temperature = cfg.learner.micro_batch_tokens, cfg.rollout.temperature
    batch = Batch.of([Row(t.token_ids, t.loss_mask) for t in kept], budget)
    passes = (POLICY, CRITIC) if cfg.algo.kl is KlPlace.none else (POLICY, REFERENCE, CRITIC)
    scores = score(backend, batch, passes, budget, temperature)
    scored = time.perf_counter()
    credit, metrics = assign_credit(batch, kept, scores, cfg)
    metrics |= _epochs(backend, batch, credit, cfg, iteration)
    metrics |= {
        "tokens": float(batch.tokens),
        "episodes_left_out": float(len(trajectories) - len(kept)),
        "seconds_logprobs": scored - started,
        "seconds_update": time.perf_counter() - scored,
    }
    return metrics


def assign_credit(
    batch: Batch, trajectories: Sequence[Trajectory], scores: dict[str, Tensor], cfg: Config
) -> tuple[Credit, Metrics]:
    """Rewards, advantages and returns of every sampled token, with the diagnostics of the start of the update."""
    algo, logprobs_N, values_N = cfg.algo, scores[POLICY], scores[CRITIC]
    reference_N = scores.get(REFERENCE)
    sampled = [np.array(row.mask, dtype=bool) for row in batch.rows]
    sampling_N = _flat([t.logprobs for t in trajectories], sampled)
    rewards_N, _ = rewards.scaled(_flat([t.rewards for t in trajectories], sampled), algo.reward_scale)
    if not (torch.isfinite(sampling_N).all() and torch.isfinite(rewards_N).all()):
        raise LearnerError("a trajectory carries a reward or sampling log-prob that is not finite")
    gap_N = (sampling_N - logprobs_N).abs()
    metrics = {"logprob_gap": gap_N.mean().item(), "logprob_gap_max": gap_N.max().item()}
    if reference_N is not None:
        metrics["kl_reference"] = losses.kl_k3(logprobs_N, reference_N).mean().item()
        if algo.kl is KlPlace.reward:
            rewards_N, _ = rewards.less_kl(rewards_N, logprobs_N, reference_N, algo.kl_coef)
    advantages_N, returns_N = _ragged_gae(batch, rewards_N, values_N, algo.gamma, algo.gae_lambda)
    metrics["explained_variance"] = explained_variance(values_N, returns_N).item()
    metrics["advantage_mean"] = advantages_N.mean().item()
    metrics["value_mean"] = values_N.mean().item()
    metrics["return_mean"] = returns_N.mean().item()
    if algo.whiten_advantages:
        advantages_N = whiten(advantages_N, *moments(advantages_N))
    return Credit(logprobs_N, values_N, advantages_N, returns_N, reference_N), metrics


def _flat(per_episode: Sequence[Sequence[float]], sampled: Sequence[np.ndarray]) -> Tensor:
    """The entries on sampled tokens, episode after episode."""
    kept = [np.asarray(v, dtype=np.float32)[mask] for v, mask in zip(per_episode, sampled, strict=True)]
    return torch.from_numpy(np.concatenate(kept))


def _ragged_gae(
    batch: Batch, rewards_N: Tensor, values_N: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE of flat tensors: an episode a row, its sampled tokens only."""
    counts_B = torch.tensor([row.counted for row in batch.rows])
    mask_BS = torch.arange(int(counts_B.max()))[None, :] < counts_B[:, None]
    rewards_BS, values_BS = (
        torch.zeros(mask_BS.shape).masked_scatter(mask_BS, x) for x in (rewards_N, values_N)
    )
    advantages_BS, returns_BS = gae(rewards_BS, values_BS, mask_BS, gamma, lam)
    return advantages_BS[mask_BS], returns_BS[mask_BS]


def _epochs(backend: DeepSpeedBackend, batch: Batch, credit: Credit, cfg: Config, iteration: int) -> Metrics:
    """The optimizer steps of one update; metrics are means over steps (`*_max`: maxima)."""
    algo, found = cfg.algo, []
    learn_policy = iteration >= algo.critic_warmup
    passes = (POLICY, CRITIC) if learn_policy else (CRITIC,)
    per_update = algo.epochs * algo.minibatches
    for epoch in range(algo.epochs):
        order = np.random.default_rng([cfg.seed, iteration, epoch]).permutation(len(batch.rows))
        for k, chosen in enumerate(np.array_split(order, algo.minibatches)):
            indices = [int(i) for i in chosen]
            if not indices:
                continue  # fewer episodes than minibatches; all ranks agree
            step = iteration * per_update + epoch * algo.minibatches + k
            rates = {
                POLICY: warmed_up(
                    algo.learning_rate, step - algo.critic_warmup * per_update, algo.warmup_steps
                ),
                CRITIC: warmed_up(algo.critic_learning_rate, step, algo.warmup_steps),
            }
            loss = _ppo_loss(credit, cfg, batch.counted(indices))
            where = f"PPO iteration {iteration}, epoch {epoch}, minibatch {k}"
            found.append(_step(backend, batch, indices, passes, loss, rates, cfg.rollout.temperature, where))
    return {
        name: (max if name.endswith("_max") else np.mean)([step[name] for step in found]).__float__()
        for name in found[0]
    }


def warmed_up(rate: float, step: int, warmup_steps: int) -> float:
    """Linear from rate / warmup_steps at step 0 up to `rate`, then constant; 0 before step 0."""
    if step < 0:
        return 0.0
    return rate * min(1.0, (step + 1) / max(1, warmup_steps))


def _ppo_loss(credit: Credit, cfg: Config, tokens: int) -> LossFunction:
    """The loss of a micro-batch as its share of a minibatch with `tokens` sampled tokens."""
    algo = cfg.algo

    def loss_of(found: dict[str, Tensor], slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        old_values_N, returns_N = credit.old_values_N[slots_N], credit.returns_N[slots_N]
        loss, metrics = losses.value_loss(
            found[CRITIC].cpu(), old_values_N, returns_N, algo.value_clip, tokens
        )
        total = algo.value_coef * loss
        if POLICY not in found:
            return total, metrics
        logprobs_N, entropy_N = (x.cpu() for x in found[POLICY])
        advantages_N, old_N = credit.advantages_N[slots_N], credit.old_logprobs_N[slots_N]
        loss, more = losses.policy_loss(logprobs_N, old_N, advantages_N, algo.clip, tokens)
        entropy, entropy_metrics = losses.entropy_bonus(entropy_N, tokens)
        total, metrics = total + loss - algo.entropy_coef * entropy, metrics | more | entropy_metrics
        if algo.kl is KlPlace.loss and credit.reference_N is not None:
            kl, kl_metrics = losses.kl_penalty(logprobs_N, credit.reference_N[slots_N], tokens)
            total, metrics = total + algo.kl_coef * kl, metrics | kl_metrics
        return total, metrics

    return loss_of


def sft_step(backend: DeepSpeedBackend, examples: Sequence[Example], cfg: Config, step: int) -> Metrics:
    """One supervised step of the policy adapter on `examples`, all given to every rank; `step` counts from 0."""
    started = time.perf_counter()
    batch = Batch.of([Row(e.token_ids, e.loss_mask) for e in examples], cfg.learner.micro_batch_tokens)

    def loss_of(found: dict[str, Tensor], slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        return losses.sft_loss(found[POLICY][0].cpu(), batch.tokens)

    rates = {POLICY: warmed_up(cfg.sft.learning_rate, step, cfg.sft.warmup_steps), CRITIC: 0.0}
    indices = range(len(batch.rows))
    metrics = _step(backend, batch, indices, (POLICY,), loss_of, rates, 1.0, f"SFT step {step}")
    return metrics | {"tokens": float(batch.tokens), "seconds_update": time.perf_counter() - started}


def _step(
    backend: DeepSpeedBackend,
    batch: Batch,
    indices: Sequence[int],
    passes: tuple[str, ...],
    loss_of: LossFunction,
    rates: dict[str, float],
    temperature: float,
    where: str,
) -> Metrics:
    """One optimizer step over the rows `indices`, this rank's share in micro-batches."""
    contributions: list[losses.Metrics] = []

    def losses_drawn() -> Iterator[Tensor]:
        for groups in plan:
            micro = collate(batch.rows, batch.starts, groups)
            loss, metrics = loss_of(backend.forward(micro, passes, temperature), micro.slots_N)
            contributions.append(metrics)
            yield loss

    plan = _share(backend, batch, indices, backend.cfg.micro_batch_tokens)
    norms = backend.step(losses_drawn(), len(plan), rates, where)
    metrics = _reduced(backend, contributions)
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise LearnerError(f"{where}: {', '.join(bad)} not finite")
    return metrics | {f"grad_norm_{name}": norm for name, norm in norms.items()}


def _share(backend: DeepSpeedBackend, batch: Batch, indices: Sequence[int], budget: int) -> list[list[Group]]:
    return plan_micro_batches(batch.rows, indices, budget, backend.place.world)[backend.place.rank]


def _reduced(backend: DeepSpeedBackend, contributions: Sequence[losses.Metrics]) -> Metrics:
    """Add contributions over micro-batches and ranks; `*_max` by the maximum."""
    names = sorted(contributions[0])
    table = torch.stack([torch.stack([c[n].double().cpu() for n in names]) for c in contributions])
    sums, maxima = backend.summed(table.sum(0)), backend.largest(table.amax(0))
    picked = {n: (maxima if n.endswith("_max") else sums)[i].item() for i, n in enumerate(names)}
    return picked
