"""Rows of tokens to packed micro-batches under a token budget, the same number of them on every rank.

    rows ─▶ share_prefixes ─▶ groups ─▶ plan_micro_batches ─▶ [rank][micro-batch][group] ─▶ collate ─▶ tensors

A micro-batch is one row of tokens without padding: of every group its prefix once, then each member's own
continuation, positions restarting; attention (rlpost.learner.model.packed_attention) shows a token its own past alone.

Sampled tokens of all rows have one flat numbering (rows in order, tokens in order): `slots` tell where a
micro-batch's tokens lie in it, so that log-probs, values and advantages are flat tensors of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rlpost.errors import LearnerError
from rlpost.learner.model.packed_attention import AttentionLayout, Segment
from rlpost.learner.model.prefixes import Group, share_prefixes

PADDING_ID = 0  # any valid id: an empty micro-batch computes one token, which is never scored


@dataclass(frozen=True)
class Row:
    """A token sequence and which of its tokens count (1) in the loss."""

    token_ids: Sequence[int]
    mask: Sequence[int]

    @property
    def loss_tokens(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one pass. T packed tokens (the last token of a row is a target only), N loss tokens."""

    input_ids_T: Tensor
    positions_T: Tensor
    layout: AttentionLayout  # who sees whom
    columns_N: Tensor  # where the hidden state lies that predicts the token: that of the token before it
    targets_N: Tensor  # the token itself
    slots_N: Tensor  # its index in the flat numbering of the whole batch

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


Plan = list[list[list[Group]]]  # [rank][micro-batch] -> groups of rows; an empty list fills up


def check_rows(rows: Sequence[Row], budget: int) -> None:
    """Raises LearnerError for a row that no pass could take or whose mask makes no sense."""
    for i, row in enumerate(rows):
        if len(row.token_ids) != len(row.mask):
            raise LearnerError(f"row {i}: {len(row.token_ids)} tokens but a mask of {len(row.mask)}")
        if not row.loss_tokens:
            raise LearnerError(
                f"row {i}: no token of its {len(row.mask)} is to be learnt; leave such rows out"
            )
        if row.mask[0]:
            raise LearnerError(f"row {i}: its first token is marked as sampled, but nothing stands before it")
        if len(row.token_ids) > budget:
            raise LearnerError(
                f"row {i}: {len(row.token_ids)} tokens exceed learner.micro_batch_tokens={budget}; "
                "raise it to at least rollout.max_model_len, or shorten the episodes"
            )


def plan_micro_batches(rows: Sequence[Row], indices: Sequence[int], budget: int, ranks: int) -> Plan:
    """Share the rows `indices` among the ranks; deterministic, and every rank gets as many micro-batches.

    A micro-batch costs its distinct tokens and stays within `budget`. A group larger than that, or than a
    rank's fair part of the work, is cut, and each part computes the prefix for itself. The largest group left goes
    to the rank with the least load.
    """
    inputs = [row.token_ids[:-1] for row in rows]
    lengths = [len(tokens) for tokens in inputs]
    groups = share_prefixes(inputs, indices)
    fair = -(-sum(group.cost(lengths) for group in groups) // ranks)
    parts = [part for group in groups for part in _cut(group, lengths, budget, fair)]
    shares: list[list[Group]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for part in sorted(parts, key=lambda part: (-part.cost(lengths), part.members)):
        rank = loads.index(min(loads))
        shares[rank].append(part)
        loads[rank] += part.cost(lengths)
    plan = [_fill(share, lengths, budget) for share in shares]
    count = max(len(batches) for batches in plan)
    return [batches + [[] for _ in range(count - len(batches))] for batches in plan]


def planned_tokens(plan: Plan, rows: Sequence[Row]) -> int:
    """Tokens that one pass over a plan computes, on all ranks: of what rows share, one copy a group."""
    lengths = [len(row.token_ids) - 1 for row in rows]
    return sum(group.cost(lengths) for batches in plan for groups in batches for group in groups)


def _cut(group: Group, lengths: Sequence[int], budget: int, fair: int) -> Iterator[Group]:
    """Parts of the group within `budget`, like-sized, and as many as there are fair parts in it."""
    own, pieces = group.cost(lengths) - group.prefix, -(-group.cost(lengths) // max(1, fair))
    target = group.prefix + own / pieces if pieces > 1 else budget
    part, cost = list[int](), group.prefix
    for i in group.members:
        more = lengths[i] - group.prefix
        if part and (cost + more > budget or cost >= target):
            yield _part(group, part)
            part, cost = [], group.prefix
        part.append(i)
        cost += more
    yield _part(group, part)


def _part(group: Group, members: Sequence[int]) -> Group:
    return Group(group.prefix if len(members) > 1 else 0, tuple(members))


def _fill(largest_first: Sequence[Group], lengths: Sequence[int], budget: int) -> list[list[Group]]:
    """First fit: each group into the first micro-batch that has room for it."""
    batches: list[list[Group]] = []
    room: list[int] = []
    for group in largest_first:
        cost = group.cost(lengths)
        fitting = [b for b, left in enumerate(room) if cost <= left]
        if fitting:
            batches[fitting[0]].append(group)
            room[fitting[0]] -= cost
        else:
            batches.append([group])
            room.append(budget - cost)
    return batches


def slot_starts(rows: Sequence[Row]) -> list[int]:
    """Where each row's loss tokens begin in the flat numbering; one more entry gives the total."""
    return list(accumulate((row.loss_tokens for row in rows), initial=0))


def collate(rows: Sequence[Row], starts: Sequence[int], groups: Sequence[Group]) -> MicroBatch:
    """Tensors of the rows in `groups`; with none, one padding token and no loss token (weight zero)."""
    tokens, segments = list[int](), list[Segment]()
    columns_targets_slots: list[tuple[int, int, int]] = []

    def add(more: Sequence[int], behind: Segment | None) -> Segment:
        segments.append(Segment(len(tokens), len(more), behind))
        tokens.extend(more)
        return segments[-1]

    for group in groups:
        shared = add(rows[group.members[0]].token_ids[: group.prefix], None) if group.prefix else None
        for i in group.members:
            row = rows[i]
            own = add(row.token_ids[group.prefix : -1], shared)
            targets = [t for t, in_loss in enumerate(row.mask) if in_loss]
            columns_targets_slots += [
                (own.packed_index(t - 1), row.token_ids[t], starts[i] + k) for k, t in enumerate(targets)
            ]
    if not tokens:
        add([PADDING_ID], None)
    by_field = torch.tensor(columns_targets_slots, dtype=torch.long).reshape(-1, 3).unbind(1)
    positions_T = torch.cat([torch.arange(s.first, s.first + s.length) for s in segments])
    return MicroBatch(torch.tensor(tokens), positions_T, AttentionLayout.of(segments), *by_field)
