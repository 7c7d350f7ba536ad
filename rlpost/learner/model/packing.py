"""Packs rows of tokens into micro-batches under a token budget, the same number of them on every rank.

    rows ─▶ share_prefixes ─▶ groups ─▶ plan_micro_batches ─▶ [rank][micro-batch][group] ─▶ collate ─▶ tensors

A micro-batch is one row of tokens without padding. It has the prefix of every group once, then the continuation of each
member, with positions as in the member's own row. Attention (rlpost.learner.model.packed_attention) shows a token only
the earlier tokens of its own row.

The loss tokens of all rows have one flat numbering (rows in order, tokens in order). `slots` are the numbers of a
micro-batch's tokens, so log-probs, values and advantages are flat tensors of the whole batch.
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

PADDING_ID = 0  # any valid id: an empty micro-batch computes one token without loss


@dataclass(frozen=True)
class Row:
    """A token sequence, with a mask of the tokens in the loss (1)."""

    token_ids: Sequence[int]
    mask: Sequence[int]

    @property
    def loss_tokens(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one pass. T packed tokens (a row's last token is only a target), N loss tokens."""

    input_ids_T: Tensor
    positions_T: Tensor
    layout: AttentionLayout  # the keys that each token sees
    columns_N: Tensor  # index of the hidden state that predicts the token: that of the token before it
    targets_N: Tensor  # the loss tokens
    slots_N: Tensor  # index of each loss token in the flat numbering of the whole batch

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


# [rank][micro-batch] -> groups of rows; an empty list is a micro-batch that only evens out the number.
Plan = list[list[list[Group]]]


def check_rows(rows: Sequence[Row], budget: int) -> None:
    """Raises LearnerError for a row that is longer than a pass allows or has an invalid mask."""
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
    """Distribute the rows `indices` over the ranks. It is deterministic, and every rank gets as many micro-batches.

    A micro-batch costs its distinct tokens and stays within `budget`. A group that exceeds the budget, or a rank's fair
    share of the work, is cut into parts that each compute the prefix. The largest remaining group goes to the rank with
    the least load.
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
    """The tokens that one pass over a plan computes on all ranks. A shared prefix counts once per group."""
    lengths = [len(row.token_ids) - 1 for row in rows]
    return sum(group.cost(lengths) for batches in plan for groups in batches for group in groups)


def _cut(group: Group, lengths: Sequence[int], budget: int, fair: int) -> Iterator[Group]:
    """Parts of the group within `budget`, of similar size; as many as the group has fair shares."""
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
    """First fit: put each group into the first micro-batch that has room for it."""
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
    """The index of each row's first loss token in the flat numbering, followed by the total."""
    return list(accumulate((row.loss_tokens for row in rows), initial=0))


def collate(rows: Sequence[Row], starts: Sequence[int], groups: Sequence[Group]) -> MicroBatch:
    """Tensors of the rows in `groups`. Without groups: one padding token and no loss token (weight zero)."""
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
