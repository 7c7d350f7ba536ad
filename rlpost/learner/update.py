"""One update of reinforcement learning and one SFT step on this rank; the formulas are in rlpost.algorithms.

    trajectories ─▶ Batch (rows; N sampled tokens in all)
       ─▶ passes without gradient, each rank its share, shared by all-reduce: policy; reference and values if needed
       ─▶ rlpost.learner.credit: rewards less KL ─▶ advantages    every rank does the same sums on the same numbers
       ─▶ epochs x minibatches: shares of the minibatch's loss by rank ─▶ DeepSpeedBackend.step

Which episodes make a minibatch depends on (seed, iteration, epoch) alone, never on the number of ranks; groups stay
whole, and weights are those of the whole minibatch: two ranks take the step that one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlpost.algorithms import losses
from rlpost.algorithms.table import TABLE
from rlpost.config import AlgoConfig, Config, EngineCorrection, KlPlace, OldLogprobs
from rlpost.errors import LearnerError
from rlpost.learner.credit import Credit, assign_credit
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.packing import (
    Row,
    check_rows,
    collate,
    plan_micro_batches,
    planned_tokens,
    slot_starts,
)
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


def learnable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Episodes the policy answers for: with a sampled token, and not broken by the environment."""
    return [t for t in trajectories if t.answer_tokens and t.ending is not Ending.ENV_ERROR]


def score(
    backend: DeepSpeedBackend, batch: Batch, passes: tuple[str, ...], budget: int, temperature: float
) -> dict[str, Tensor]:
    """Run `passes` over the batch without gradients; returns flat (N,) tensors, whole on every rank."""
    if not passes:
        return {}
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
    """One iteration of `cfg.algo` on `trajectories`, all of them given to every rank; `iteration` counts from 0.

    Raises LearnerError for a batch without sampled tokens, rows that do not fit, non-finite losses or gradients.
    """
    started = time.perf_counter()
    kept = learnable(trajectories)
    budget, temperature = cfg.learner.micro_batch_tokens, cfg.rollout.temperature
    batch = Batch.of([Row(t.token_ids, t.loss_mask) for t in kept], budget)
    scores = score(backend, batch, passes_of(cfg.algo), budget, temperature)
    scored = time.perf_counter()
    credit, metrics = assign_credit(kept, scores, cfg)
    metrics |= _epochs(backend, batch, credit, cfg, iteration)
    metrics |= {
        "tokens": float(batch.tokens),
        "tokens/scored": float(len(passes_of(cfg.algo)) * _computed(backend, batch, range(len(batch.rows)))),
        "episodes_left_out": float(len(trajectories) - len(kept)),
        "seconds_logprobs": scored - started,
        "seconds_update": time.perf_counter() - scored,
    }
    return metrics


def passes_of(algo: AlgoConfig) -> tuple[str, ...]:
    """What must be known of every token before the update."""
    policy = (POLICY,) if _needs_old_logprobs(algo) else ()
    reference = () if algo.kl is KlPlace.none else (REFERENCE,)
    critic = (CRITIC,) if TABLE[algo.name].critic else ()
    return (*policy, *reference, *critic)


def _needs_old_logprobs(algo: AlgoConfig) -> bool:
    """Whether the learner must score the batch before its first step: not when there is but one step, whose own
    forward pass gives the same numbers, unless they are wanted earlier."""
    if algo.old_logprobs is OldLogprobs.engine:
        return False
    early = algo.kl is KlPlace.reward or algo.engine_correction is not EngineCorrection.none
    return early or algo.epochs * algo.minibatches > 1 or algo.critic_warmup > 0


def _epochs(backend: DeepSpeedBackend, batch: Batch, credit: Credit, cfg: Config, iteration: int) -> Metrics:
    """The optimizer steps of one update; metrics are means over the steps that have them (maxima, sums: _together)."""
    algo, found = cfg.algo, []
    epochs = {POLICY: algo.epochs if iteration >= algo.critic_warmup else 0}
    if TABLE[algo.name].critic:
        epochs[CRITIC] = algo.critic_epochs or algo.epochs
    for epoch in range(max(epochs.values())):
        passes = tuple(name for name, count in epochs.items() if epoch < count)
        for k, episodes in enumerate(_minibatches(credit, cfg, iteration, epoch)):
            rates = _rates(algo, iteration, epoch * algo.minibatches + k, passes)
            loss = _loss(credit, episodes, cfg)
            where = f"iteration {iteration}, epoch {epoch}, minibatch {k}"
            found.append(_step(backend, batch, episodes, passes, loss, rates, cfg.rollout.temperature, where))
    together: dict[str, list[float]] = {}
    for step in found:
        for name, value in step.items():
            together.setdefault(name, []).append(value)
    return {name: float(_together(name)(values)) for name, values in together.items()}


def _together(metric: str) -> Callable[[list[float]], float]:
    """How the optimizer steps' values of a metric become that of the update."""
    if metric.startswith("tokens/"):
        return sum
    return max if metric.endswith("_max") else lambda values: float(np.mean(values))


def _minibatches(credit: Credit, cfg: Config, iteration: int, epoch: int) -> Iterator[list[int]]:
    """Whole groups in an order of their own for each epoch; fewer minibatches when there are fewer groups."""
    groups_B = credit.layout.groups_B.numpy()
    order = np.random.default_rng([cfg.seed, iteration, epoch]).permutation(groups_B.max() + 1)
    members = [np.flatnonzero(groups_B == group).tolist() for group in order]
    for chosen in np.array_split(np.arange(len(members)), cfg.algo.minibatches):
        if len(chosen):
            yield [i for k in chosen for i in members[k]]


def _rates(algo: AlgoConfig, iteration: int, step: int, passes: tuple[str, ...]) -> dict[str, float]:
    """Learning rates of an iteration's `step`; 0 for what does not learn in it."""
    critic_steps = (algo.critic_epochs or algo.epochs) * algo.minibatches
    policy_steps = algo.epochs * algo.minibatches
    done = (iteration - algo.critic_warmup) * policy_steps + step, iteration * critic_steps + step
    policy = warmed_up(algo.learning_rate, done[0], algo.warmup_steps)
    critic = warmed_up(algo.critic_learning_rate, done[1], algo.warmup_steps)
    return {POLICY: policy if POLICY in passes else 0.0, CRITIC: critic if CRITIC in passes else 0.0}


def warmed_up(rate: float, step: int, warmup_steps: int) -> float:
    """Linear from rate / warmup_steps at step 0 up to `rate`, then constant; 0 before step 0."""
    if step < 0:
        return 0.0
    return rate * min(1.0, (step + 1) / max(1, warmup_steps))


def _loss(credit: Credit, episodes: Sequence[int], cfg: Config) -> LossFunction:
    """The loss of a micro-batch as its share of that of the minibatch that `episodes` make."""
    algo = cfg.algo
    chosen_N = credit.layout.weights(episodes, TABLE[algo.name].aggregation, cfg.rollout.max_new_tokens)
    learnt = int((chosen_N > 0).sum())
    valued = int(((chosen_N > 0) & credit.counted_N).sum())

    def loss_of(found: dict[str, Tensor], slots_N: Tensor) -> tuple[Tensor, losses.Metrics]:
        total, metrics = torch.zeros(()), losses.Metrics()
        if CRITIC in found:
            loss, metrics = _value_loss(credit, slots_N, found[CRITIC].cpu(), algo, valued)
            total = algo.value_coef * loss
        if POLICY in found:
            logprobs_N, entropy_N = (x.cpu() for x in found[POLICY])
            weights_N = chosen_N[slots_N]
            loss, more = _policy_terms(credit, slots_N, logprobs_N, entropy_N, weights_N, algo, learnt)
            total = total + loss
            metrics |= more | _first_look(credit, slots_N, logprobs_N, algo, learnt)
        return total, metrics

    return loss_of


def _value_loss(
    credit: Credit, slots_N: Tensor, values_N: Tensor, algo: AlgoConfig, valued: int
) -> tuple[Tensor, losses.Metrics]:
    assert credit.old_values_N is not None, "values come from a critic's pass"
    here_N = credit.counted_N[slots_N]
    at_M = slots_N[here_N]
    old_M, returns_M = credit.old_values_N[at_M], credit.returns_N[at_M]
    return losses.value_loss(values_N[here_N], old_M, returns_M, algo.value_clip, valued)


def _policy_terms(
    credit: Credit,
    slots_N: Tensor,
    logprobs_N: Tensor,
    entropy_N: Tensor,
    weights_N: Tensor,
    algo: AlgoConfig,
    learnt: int,
) -> tuple[Tensor, losses.Metrics]:
    """Surrogate, less the entropy bonus, plus the KL penalty if it is in the loss."""
    row = TABLE[algo.name]
    old_N = logprobs_N.detach() if credit.old_logprobs_N is None else credit.old_logprobs_N[slots_N]
    clip = losses.Clip(algo.clip, algo.clip if algo.clip_high is None else algo.clip_high, algo.ratio_ceiling)
    log_ratio_N = losses.log_ratios(
        logprobs_N, old_N, credit.units_N(row.ratio)[slots_N], row.ratio, credit.emphasis_N[slots_N]
    )
    corrected_N = weights_N * credit.engine_weights_N[slots_N]
    total, metrics = losses.policy_loss(
        logprobs_N, log_ratio_N, credit.advantages_N[slots_N], corrected_N, row.surrogate, clip, learnt
    )
    entropy, found = losses.entropy_bonus(entropy_N, weights_N, learnt)
    total, metrics = total - algo.entropy_coef * entropy, metrics | found
    if algo.kl is KlPlace.loss and credit.reference_N is not None:
        kl, found = losses.kl_penalty(
            logprobs_N, credit.reference_N[slots_N], weights_N, algo.kl_estimator, learnt
        )
        total, metrics = total + algo.kl_coef * kl, metrics | found
    return total, metrics | losses.approx_kl(logprobs_N, old_N, learnt)


def _first_look(
    credit: Credit, slots_N: Tensor, logprobs_N: Tensor, algo: AlgoConfig, learnt: int
) -> losses.Metrics:
    """What the scoring pass would have told, had the policy had one."""
    if _needs_old_logprobs(algo):
        return {}
    metrics = losses.engine_gap(credit.sampling_N[slots_N], logprobs_N, learnt)
    if credit.reference_N is not None:
        kl_N = losses.kl_k3(logprobs_N.detach(), credit.reference_N[slots_N])
        metrics["kl_reference"] = kl_N.sum() / learnt
    return metrics


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
    metrics["tokens/trained"] = float(len(passes) * _computed(backend, batch, indices))
    return metrics | {f"grad_norm_{name}": norm for name, norm in norms.items()}


def _computed(backend: DeepSpeedBackend, batch: Batch, indices: Sequence[int]) -> int:
    """Tokens that one pass over the rows `indices` computes, on all ranks together."""
    plan = plan_micro_batches(batch.rows, indices, backend.cfg.micro_batch_tokens, backend.place.world)
    return planned_tokens(plan, batch.rows)


def _share(backend: DeepSpeedBackend, batch: Batch, indices: Sequence[int], budget: int) -> list[list[Group]]:
    return plan_micro_batches(batch.rows, indices, budget, backend.place.world)[backend.place.rank]


def _reduced(backend: DeepSpeedBackend, contributions: Sequence[losses.Metrics]) -> Metrics:
    """Add contributions over micro-batches and ranks; `*_max` by the maximum."""
    names = sorted(contributions[0])
    table = torch.stack([torch.stack([c[n].double().cpu() for n in names]) for c in contributions])
    sums, maxima = backend.summed(table.sum(0)), backend.largest(table.amax(0))
    picked = {n: (maxima if n.endswith("_max") else sums)[i].item() for i, n in enumerate(names)}
    return picked
