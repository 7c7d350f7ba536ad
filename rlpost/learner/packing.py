"""Rows of tokens to padded micro-batches under a token budget, the same number of them on every rank.

    rows ──▶ plan_micro_batches: longest first, each to the rank with the least load ──▶ [rank][micro-batch][row]
                                                                        collate ──▶ MicroBatch of tensors

Sampled tokens of all rows have one flat numbering (rows in order, tokens in order): `slots` tell where a
micro-batch's tokens lie in it, so that log-probs, values and advantages are flat tensors of the whole batch.
Padding is on the right; under causal attention no token sees what lies to its right, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rlpost.errors import LearnerError

PADDING_ID = 0  # any valid id: padding is never attended to and never scored


@dataclass(frozen=True)
class Row:
    """A token sequence and which of its tokens count (1) in the loss."""

    token_ids: Sequence[int]
    mask: Sequence[int]

    @property
    def counted(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one pass. B rows, T positions (the last token of a row is a target only), N counted tokens."""

    input_ids_BT: Tensor
    rows_N: Tensor  # which row of this micro-batch
    columns_N: Tensor  # position whose hidden state predicts the token: one before it
    targets_N: Tensor  # the token itself
    slots_N: Tensor  # its place in the flat numbering of the whole batch

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


Plan = list[list[list[int]]]  # [rank][micro-batch] -> indices of rows; an empty list fills up


def check_rows(rows: Sequence[Row], budget: int) -> None:
    """Raises LearnerError for a row that no pass could take or whose mask makes no sense."""
    for i, row in enumerate(rows):
        if len(row.token_ids) != len(row.mask):
            raise LearnerError(f"row {i}: {len(row.token_ids)} tokens but a mask of {len(row.mask)}")
        if not row.counted:
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


def plan_micro_batches(lengths: Sequence[int], indices: Sequence[int], budget: int, ranks: int) -> Plan:
    """Share the rows `indices` among the ranks; deterministic, and every rank gets as many micro-batches.

    A micro-batch costs rows times its longest length, padding included, and stays within `budget`. A rank's
    load is its tokens: the longest row left goes to the rank with the least load.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in sorted(indices, key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(i)
        loads[rank] += lengths[i]
    plan = [_fill(lengths, share, budget) for share in shares]
    count = max(len(batches) for batches in plan)
    return [batches + [[] for _ in range(count - len(batches))] for batches in plan]


def _fill(lengths: Sequence[int], longest_first: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in longest_first:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def slot_starts(rows: Sequence[Row]) -> list[int]:
    """Where each row's counted tokens begin in the flat numbering; one more entry gives the total."""
    return list(accumulate((row.counted for row in rows), initial=0))


def collate(rows: Sequence[Row], starts: Sequence[int], indices: Sequence[int]) -> MicroBatch:
    """Tensors of the rows `indices`; with none, one padding token and nothing counted (weight zero)."""
    width = max((len(rows[i].token_ids) - 1 for i in indices), default=1)
    input_ids_BT = torch.full((max(1, len(indices)), width), PADDING_ID, dtype=torch.long)
    places: list[tuple[int, int, int, int]] = []
    for b, i in enumerate(indices):
        token_ids = rows[i].token_ids
        input_ids_BT[b, : len(token_ids) - 1] = torch.tensor(token_ids[:-1])
        counted = [t for t, learnt in enumerate(rows[i].mask) if learnt]
        places += [(b, t - 1, token_ids[t], starts[i] + k) for k, t in enumerate(counted)]
    columns = torch.tensor(places, dtype=torch.long).reshape(-1, 4).unbind(1)
    return MicroBatch(input_ids_BT, *columns)
