"""One RL update and one SFT step on this rank.

    trajectories ─▶ Batch (rows; N sampled tokens in all)
       ─▶ passes without gradient, each rank its share, shared by all-reduce: policy, reference, values and teacher if
          needed
       ─▶ a critic that takes one step takes it now: its forward pass gives the values
       ─▶ rlpost.algorithms.credit: rewards less KL ─▶ advantages    every rank does the same sums on the same numbers
       ─▶ epochs x minibatches: rlpost.algorithms.objective ─▶ shares of the minibatch's loss by rank ─▶ optimizer step
          algo=rft, dpo: of the episodes that teach; none: no step. dpo: a pass without gradient before each step
    expert answers ─▶ as many shares as the policy takes steps: algo.expert_coef x SFT's loss, added to each step's

The episodes of a minibatch depend on (seed, iteration, epoch) alone, not on the number of ranks. Groups stay whole, and
weights are those of the whole minibatch, so two ranks take the same step as one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlpost.algorithms import losses
from rlpost.algorithms.credit import TrainingBatch, assign_credit
from rlpost.algorithms.objective import Outputs, critic_steps_once, minibatch_loss, roles_to_compute
from rlpost.algorithms.preferences import with_preferences
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, TEACHER
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoConfig, Config
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.model.packing import Row
from rlpost.learner.schedules import rl_rates, sft_rate
from rlpost.learner.steps import Batch, Metrics, Part, compute_outputs, take_step
from rlpost.types import Example, Trajectory, loss_mask, token_ids


def learnable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The episodes to train on: those with a sampled token that the environment did not break."""
    return [t for t in trajectories if t.answer_tokens and not t.ending.broken]


def update_rl(
    backend: DeepSpeedBackend,
    trajectories: Sequence[Trajectory],
    cfg: Config,
    iteration: int,
    examples: Sequence[Example] = (),
) -> Metrics:
    """One iteration of `cfg.algo` on `trajectories`. Every rank gets all of them; `iteration` counts from 0.

    `examples` are expert answers for the policy's steps, each of which is in one step (`algo.expert_coef`).

    Raises LearnerError for a batch without sampled tokens, rows that are too long, and non-finite losses or gradients.
    """
    started = time.perf_counter()
    kept = learnable(trajectories)
    budget, temperature = cfg.learner.micro_batch_tokens, cfg.rollout.temperature
    batch, rows_B = _batch(kept, budget)
    one_sample = len(batch.rows) == len(kept)
    critic_first = critic_steps_once(cfg.algo) and one_sample
    roles = roles_to_compute(cfg, one_sample)
    outputs, tokens_each = compute_outputs(backend, batch, roles, budget, temperature)
    computed = time.perf_counter()
    steps = list[Metrics]()
    if critic_first:
        outputs[CRITIC], step = _critic_step(backend, batch, kept, outputs, cfg, iteration)
        steps.append(step)
    training_batch, metrics = assign_credit(kept, outputs, cfg)
    steps += _epochs(backend, batch, rows_B, training_batch, cfg, iteration, critic_first, examples)
    update = _of_the_update(steps)
    scored = tokens_each * len([role for role in roles if role != TEACHER])
    metrics |= update | {
        "tokens": float(training_batch.layout.lengths_B[training_batch.learnt_B].sum()),
        "tokens/scored": scored + update.get("tokens/scored", 0.0),
        "episodes_left_out": float(len(trajectories) - len(kept)),
        "seconds_logprobs": computed - started,
        "seconds_update": time.perf_counter() - computed,
    }
    return metrics | ({"tokens/teacher": float(tokens_each)} if TEACHER in roles else {})


def _batch(episodes: Sequence[Trajectory], budget: int) -> tuple[Batch, list[list[int]]]:
    """A row a sample, and which rows each episode has."""
    samples = [(b, sample) for b, episode in enumerate(episodes) for sample in episode.samples]
    rows_B: list[list[int]] = [[] for _ in episodes]
    for row, (b, _) in enumerate(samples):
        rows_B[b].append(row)
    return Batch.of([Row(token_ids(turns), loss_mask(turns)) for _, turns in samples], budget), rows_B


def _critic_step(
    backend: DeepSpeedBackend,
    batch: Batch,
    episodes: Sequence[Trajectory],
    known: dict[str, Tensor],
    cfg: Config,
    iteration: int,
) -> tuple[Tensor, Metrics]:
    """The only step of the critic in an update. Returns the values (N,) before the step, complete on every rank.

    A micro-batch holds whole episodes, each of one sample, and an episode's returns depend only on its own values. The
    loss of a micro-batch can thus be computed from its own forward pass, before the values of other micro-batches are
    known.
    """
    values_N = torch.zeros(batch.tokens)

    def loss_of(outputs: Outputs, slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        values_N[slots_N] = outputs.of(CRITIC).detach().cpu()
        training_batch, _ = assign_credit(episodes, {**known, CRITIC: values_N}, cfg)
        return minibatch_loss(training_batch, all_episodes, cfg)(outputs, slots_N)

    all_episodes, where = range(len(episodes)), f"iteration {iteration + 1}, the critic's step"
    learning_rates = _learning_rates(cfg.algo, iteration, 0, (CRITIC,))
    part = Part(batch, all_episodes, (CRITIC,), loss_of, cfg.rollout.temperature)
    step = take_step(backend, [part], learning_rates, where)
    return backend.summed(values_N), step


def _epochs(
    backend: DeepSpeedBackend,
    batch: Batch,
    rows_B: Sequence[Sequence[int]],
    training_batch: TrainingBatch,
    cfg: Config,
    iteration: int,
    critic_stepped: bool,
    examples: Sequence[Example],
) -> list[Metrics]:
    """The optimizer steps of an update, without the critic if it has already taken its only step."""
    algo, steps = cfg.algo, list[Metrics]()
    epochs = {POLICY: algo.epochs if iteration >= algo.critic_warmup else 0}
    if TABLE[algo.name].critic and not critic_stepped:
        epochs[CRITIC] = algo.critic_epochs or algo.epochs
    plan = [
        (epoch, k, episodes)
        for epoch in range(max(epochs.values()))
        for k, episodes in enumerate(_minibatches(training_batch, cfg, iteration, epoch))
    ]
    experts = _expert_parts(examples, sum(epoch < epochs[POLICY] for epoch, _, _ in plan), cfg)
    if not plan and examples:  # no episode teaches, but an expert does
        learning_rates = _learning_rates(algo, iteration, 0, (POLICY,))
        steps.append(take_step(backend, list(experts), learning_rates, f"iteration {iteration + 1}"))
    for epoch, k, episodes in plan:
        roles = tuple(name for name, count in epochs.items() if epoch < count)
        learning_rates = _learning_rates(algo, iteration, epoch * algo.minibatches + k, roles)
        rows = [row for b in episodes for row in rows_B[b]]
        of_step, more = _with_preferences(backend, batch, rows, training_batch, episodes, cfg)
        loss = minibatch_loss(of_step, episodes, cfg, first=epoch == k == 0)
        part = Part(batch, rows, roles, loss, cfg.rollout.temperature)
        beside = [next(experts)] if POLICY in roles and examples else []
        where = f"iteration {iteration + 1}, epoch {epoch + 1}, minibatch {k + 1}"
        steps.append(take_step(backend, [*beside, part], learning_rates, where) | more)
    return steps


def _with_preferences(
    backend: DeepSpeedBackend,
    batch: Batch,
    rows: Sequence[int],
    training_batch: TrainingBatch,
    episodes: Sequence[int],
    cfg: Config,
) -> tuple[TrainingBatch, Metrics]:
    """The batch with the advantages that algo=dpo has in this step alone, from the current log-probs of `rows`."""
    if training_batch.pairs_P2 is None:
        return training_batch, {}
    budget, temperature = cfg.learner.micro_batch_tokens, cfg.rollout.temperature
    both = (POLICY, REFERENCE)
    outputs, tokens_each = compute_outputs(backend, batch, both, budget, temperature, rows)
    of_step, metrics = with_preferences(training_batch, episodes, outputs, cfg.algo.dpo_beta)
    return of_step, metrics | {"tokens/scored": float(tokens_each * len(both))}


def _expert_parts(examples: Sequence[Example], steps: int, cfg: Config) -> Iterator[Part]:
    """The expert answers of each of the policy's steps, with algo.expert_coef times the loss that SFT has of them."""
    for indices in np.array_split(np.arange(len(examples)), max(steps, 1)):
        yield _weighted(_supervised([examples[i] for i in indices], cfg), cfg.algo.expert_coef)


def _weighted(part: Part, weight: float) -> Part:
    def loss_of(outputs: Outputs, slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        loss, metrics = part.loss_of(outputs, slots_N)
        return weight * loss, {f"expert_{name}": value for name, value in metrics.items()}

    return replace(part, loss_of=loss_of)


def _of_the_update(steps: Sequence[Metrics]) -> Metrics:
    """The mean of each metric (or maximum, or sum: see _together) over the steps that have it."""
    together: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            together.setdefault(name, []).append(value)
    return {name: _together(name, values) for name, values in together.items()}


def _together(metric: str, values: Sequence[float]) -> float:
    """The value of a metric for the update, from its values in the optimizer steps."""
    if metric.startswith("tokens/"):
        return float(sum(values))
    return float(max(values) if losses.is_maximum(metric) else np.mean(values))


def _minibatches(
    training_batch: TrainingBatch, cfg: Config, iteration: int, epoch: int
) -> Iterator[list[int]]:
    """Minibatches of whole groups, in a different order each epoch; fewer minibatches if there are fewer groups.

    Episodes without a term in the loss are left out, and with them groups that have no others.
    """
    groups_B, learnt_B = training_batch.layout.groups_B.numpy(), training_batch.learnt_B.numpy()
    order = np.random.default_rng([cfg.seed, iteration, epoch]).permutation(groups_B.max() + 1)
    members = [np.flatnonzero((groups_B == group) & learnt_B).tolist() for group in order]
    members = [group for group in members if group]
    for chosen in np.array_split(np.arange(len(members)), cfg.algo.minibatches):
        if len(chosen):
            yield [i for k in chosen for i in members[k]]


def _learning_rates(algo: AlgoConfig, iteration: int, step: int, roles: tuple[str, ...]) -> dict[str, float]:
    """The learning rates at an iteration's `step`; 0 for roles that do not learn in it."""
    return {role: rate if role in roles else 0.0 for role, rate in rl_rates(algo, iteration, step).items()}


def sft_step(backend: DeepSpeedBackend, examples: Sequence[Example], cfg: Config, step: int) -> Metrics:
    """One step of `sft.loss` of the policy adapter on `examples`. Every rank gets all; `step` counts from 0."""
    started = time.perf_counter()
    part = _supervised(examples, cfg)
    learning_rates = {POLICY: sft_rate(cfg.sft, step), CRITIC: 0.0}
    metrics = take_step(backend, [part], learning_rates, f"SFT step {step + 1}")
    return metrics | {"tokens": float(part.batch.tokens), "seconds_update": time.perf_counter() - started}


def _supervised(examples: Sequence[Example], cfg: Config) -> Part:
    """The policy's loss on expert answers, at temperature 1."""
    batch = Batch.of([Row(e.token_ids, e.loss_mask) for e in examples], cfg.learner.micro_batch_tokens)

    def loss_of(outputs: Outputs, slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        return losses.SFT_LOSSES[cfg.sft.loss](outputs.of(POLICY).cpu(), batch.tokens)

    return Part(batch, range(len(batch.rows)), (POLICY,), loss_of, 1.0)
