"""Runs packed rows through the model on this rank: log-probs and values without gradient, and one optimizer step.

    rows ─▶ Batch (N loss tokens in all) ─▶ this rank's micro-batches ─▶ DeepSpeedBackend ─▶ added up over ranks

Weights are those of the whole batch, so the result does not depend on the numbers of ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlpost.algorithms import losses
from rlpost.algorithms.objective import LossFunction
from rlpost.errors import LearnerError
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.model.packing import (
    Row,
    check_rows,
    collate,
    plan_micro_batches,
    planned_tokens,
    slot_starts,
)
from rlpost.learner.model.prefixes import Group

Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """The rows of one update, with the index of each row's first loss token in the flat numbering."""

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


@dataclass(frozen=True)
class Share:
    """This rank's micro-batches of a pass over some rows, and the number of tokens computed on all ranks together."""

    micro_batches: list[list[Group]]
    tokens: int


@dataclass(frozen=True)
class Part:
    """Rows that an optimizer step learns from, the roles that compute them, and their loss."""

    batch: Batch
    indices: Sequence[int]
    roles: tuple[str, ...]
    loss_of: LossFunction
    temperature: float


def compute_outputs(
    backend: DeepSpeedBackend,
    batch: Batch,
    roles: tuple[str, ...],
    budget: int,
    temperature: float,
    indices: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Run `roles` over the rows `indices` of the batch (none: all of them) without gradients.

    Returns the log-probs or values by role, flat (N,) and complete on every rank, and the number of tokens that each
    role computed on all ranks. Entries of other rows are 0.
    """
    if not roles:
        return {}, 0
    share = _share(backend, batch, range(len(batch.rows)) if indices is None else indices, budget)
    flat = {name: torch.zeros(batch.tokens) for name in roles}
    with torch.no_grad():
        for groups in share.micro_batches:
            micro = collate(batch.rows, batch.starts, groups)
            outputs = backend.forward(micro, roles, temperature)
            for name in roles:
                flat[name][micro.slots_N] = outputs.of(name).float().cpu()
    summed = backend.summed(torch.stack([flat[name] for name in roles]))
    return dict(zip(roles, summed.unbind(0), strict=True)), share.tokens


def take_step(
    backend: DeepSpeedBackend, parts: Sequence[Part], learning_rates: dict[str, float], where: str
) -> Metrics:
    """One optimizer step on the sum of the parts' losses, of which this rank computes its share.

    The last part has every role that learns: ZeRO-1 reduces only the gradients that the last micro-batch adds to.
    """
    shares = [_share(backend, part.batch, part.indices, backend.cfg.micro_batch_tokens) for part in parts]
    contributions: list[list[losses.Metrics]] = [[] for _ in parts]

    def losses_drawn() -> Iterator[Tensor]:
        for part, share, found in zip(parts, shares, contributions, strict=True):
            for groups in share.micro_batches:
                micro = collate(part.batch.rows, part.batch.starts, groups)
                outputs = backend.forward(micro, part.roles, part.temperature)
                loss, metrics = part.loss_of(outputs, micro.slots_N)
                found.append(metrics)
                yield loss

    count = sum(len(share.micro_batches) for share in shares)
    norms = backend.step(losses_drawn(), count, learning_rates, where)
    metrics = {name: value for found in contributions for name, value in _added_up(backend, found).items()}
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise LearnerError(f"{where}: {', '.join(bad)} not finite")
    trained = sum(len(part.roles) * share.tokens for part, share in zip(parts, shares, strict=True))
    metrics["tokens/trained"] = float(trained)
    rates = {f"learning_rate_{name}": learning_rates[name] for name in norms}
    return metrics | {f"grad_norm_{name}": norm for name, norm in norms.items()} | rates


def _share(backend: DeepSpeedBackend, batch: Batch, indices: Sequence[int], budget: int) -> Share:
    plan = plan_micro_batches(batch.rows, indices, budget, backend.rendezvous.world_size)
    return Share(plan[backend.rendezvous.rank], planned_tokens(plan, batch.rows))


def _added_up(backend: DeepSpeedBackend, contributions: Sequence[losses.Metrics]) -> Metrics:
    """The sum of the contributions of all micro-batches and ranks."""
    names = sorted(contributions[0])
    table = torch.stack([torch.stack([c[n].double().cpu() for n in names]) for c in contributions])
    sums, maxima = backend.summed(table.sum(0)), backend.largest(table.amax(0))
    return {n: (maxima if losses.is_maximum(n) else sums)[i].item() for i, n in enumerate(names)}
