"""A model's body over packed rows, and the proof at the start that it can be run so.

Packing needs every layer that looks at other tokens to be attention that takes `layout` (`packed_attention`). A model
whose layers do not hand it on, or that mix tokens in other ways (convolutions, recurrences), would let rows see one
another, and its log-probs would be wrong without a word.
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

# Two rows with a common prefix of four tokens; every token but the first counts, and so is compared.
_ROWS = [Row(ids, (0,) + (1,) * (len(ids) - 1)) for ids in ((1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 8, 9, 1, 5))]
_PREFIX = 4
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of the largest entry


def hidden_states(body: Any, batch: MicroBatch) -> Tensor:
    """Last hidden states (N, H) at the positions that stand just before the loss tokens."""
    hidden_1TH = body(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.positions_T[None],
        layout=batch.layout,
        use_cache=False,
    ).last_hidden_state
    return hidden_1TH[0].index_select(0, batch.columns_N)


@torch.no_grad()
def check_packing(base: PreTrainedModel) -> None:
    """Raises ModelError unless rows give the same states packed together as each by itself."""
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
    """A model that has attention of its own takes anything for a layout."""
    try:
        hidden_states(body, replace(_packed(Group(0, (0,))), layout=cast(AttentionLayout, None)))
    except AttributeError:
        return False
    return True


def _packed(group: Group) -> MicroBatch:
    return collate(_ROWS, slot_starts(_ROWS), [group])
