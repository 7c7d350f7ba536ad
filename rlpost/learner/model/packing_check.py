"""Runs a model's body over packed rows, and checks at the start that the model supports it.

Packing requires that only attention mixes tokens, and that it accepts `layout` (`packed_attention`). If layers do not
pass it on, or mix tokens in other ways (convolutions, recurrences), rows would see one another and log-probs would be
wrong without an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlpost.errors import ModelError
from rlpost.learner.model.packed_attention import AttentionLayout
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.prefixes import Group

# Two rows with a common prefix of four tokens. Every token except the first is in the loss, so its state is compared.
_ROWS = [Row(ids, (0,) + (1,) * (len(ids) - 1)) for ids in ((1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 8, 9, 1, 5))]
_PREFIX = 4
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative to the largest entry


def hidden_states(body: Any, batch: MicroBatch) -> Tensor:
    """The last hidden states (N, H) at the positions before the loss tokens."""
    hidden_1TH = body(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.positions_T[None],
        layout=batch.layout,
        use_cache=False,
    ).last_hidden_state
    return hidden_1TH[0].index_select(0, batch.columns_N)


@torch.no_grad()
def check_packing(base: PreTrainedModel) -> None:
    """Raises ModelError unless packed rows give the same states as each row alone."""
    name, body = type(base).__name__, base.base_model
    try:
        together_NH = _states(body, Group(_PREFIX, (0, 1)))
        alone_NH = torch.cat([_states(body, Group(0, (i,))) for i in range(len(_ROWS))])
        reason = "does not use it" if _runs_without_layout(body) else None
    except TypeError as error:
        reason = str(error)
    if reason is not None:
        raise ModelError(
            f"{name}: this architecture does not hand `layout` to its attention, which packed rows need ({reason});"
            " choose a model of another architecture, such as Llama or Qwen"
        )
    gap = ((together_NH - alone_NH).abs().max() / alone_NH.abs().max()).item()
    if not gap <= _TOLERANCES[base.dtype]:
        raise ModelError(
            f"{name}: packed rows see one another in this architecture (states differ by {gap:.1%}), so that"
            " log-probs would be wrong; choose a model of another architecture, such as Llama or Qwen"
        )


def _states(body: Any, group: Group) -> Tensor:
    batch = _packed(group)
    return hidden_states(body, batch).float()[batch.slots_N.argsort()]


def _runs_without_layout(body: Any) -> bool:
    """Whether the body runs without a layout, because its own attention ignores the argument."""
    try:
        hidden_states(body, replace(_packed(Group(0, (0,))), layout=cast(AttentionLayout, None)))
    except AttributeError:
        return False
    return True


def _packed(group: Group) -> MicroBatch:
    return collate(_ROWS, slot_starts(_ROWS), [group])
