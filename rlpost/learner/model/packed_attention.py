"""Attention over packed rows: every token sees the earlier tokens of its segment and of the prefix before it.

    segments ─▶ pieces of at most QUERIES queries, each with the keys it needs ─▶ blocks of pieces of similar size
             ─▶ per block: gather, two products, softmax, in the model's own dtype ─▶ back into the packed order

The work grows with the number of visible keys, never with T x T, and a block has fewer than BLOCK scores per head. The
function is registered with transformers under the name PACKED; a model loaded with it needs `layout=...` in each call.
On a GPU each block runs through PyTorch's fused attention with a mask.

Shapes: T packed tokens, S pieces of a block, C queries and K keys of a piece, h heads, g key-value heads, r = h / g,
D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from rlpost.errors import ModelError

PACKED = "rlpost_packed"
QUERIES = 256  # longer segments are cut, so that early queries are not multiplied with late keys
BLOCK = 1 << 18  # scores per block and head
PADDING = 1.25  # a block may compute this many times the scores that its pieces need


@dataclass(frozen=True)
class Segment:
    """`length` packed tokens from `start`, which continue the segment `behind`, if any."""

    start: int
    length: int
    behind: Segment | None

    @property
    def first(self) -> int:
        """The position of the segment's first token in its sequence."""
        return self.behind.length if self.behind is not None else 0

    def packed_index(self, position: int) -> int:
        """The packed index of the token at `position` of the sequence."""
        if self.behind is not None and position < self.first:
            return self.behind.start + position
        return self.start + position - self.first


@dataclass(frozen=True)
class Block:
    """Pieces computed by one product. Shorter pieces are padded with token 0, which `bias` hides."""

    queries: Tensor  # (S * C,) indices of packed tokens
    keys: Tensor  # (S * K,)
    bias_SCK: Tensor  # 0 if the query sees the key, else -inf; both are exact in bfloat16
    real: Tensor | None  # (S * C,) False for padding; None if there is no padding


@dataclass(frozen=True)
class AttentionLayout:
    """The keys that each token of a packed micro-batch sees."""

    blocks: tuple[Block, ...]
    # For each packed token, the index of its output in the concatenated outputs of the blocks.
    order_T: Tensor
    longest: int  # length of the longest sequence, in tokens

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> AttentionLayout:
        pieces = [piece for segment in segments for piece in _pieces(segment)]
        pieces.sort(key=lambda p: (-len(p.queries), -len(p.keys), p.queries.start))
        grouped = list(_blocks(pieces))
        order_T = torch.empty(sum(len(p.queries) for p in pieces), dtype=torch.long)
        begin = 0
        for block in grouped:
            width = len(block[0].queries)
            for piece in block:
                order_T[piece.queries.start : piece.queries.stop] = torch.arange(
                    begin, begin + len(piece.queries)
                )
                begin += width
        longest = max(segment.first + segment.length for segment in segments)
        return cls(tuple(_block(block) for block in grouped), order_T, longest)

    def to(self, device: torch.device) -> AttentionLayout:
        def moved(tensor: Tensor | None) -> Any:
            return tensor.to(device) if tensor is not None else None

        blocks = (Block(*(moved(getattr(b, n)) for n in b.__dataclass_fields__)) for b in self.blocks)
        return AttentionLayout(tuple(blocks), self.order_T.to(device), self.longest)


@dataclass(frozen=True)
class _Piece:
    """Consecutive queries with all keys that the last one sees; query i of C sees the first K - C + 1 + i keys."""

    queries: range
    keys: tuple[int, ...]


def _pieces(segment: Segment) -> Iterator[_Piece]:
    behind = segment.behind
    before = tuple(range(behind.start, behind.start + behind.length)) if behind is not None else ()
    end = segment.start + segment.length
    for start in range(segment.start, end, QUERIES):
        stop = min(start + QUERIES, end)
        yield _Piece(range(start, stop), before + tuple(range(segment.start, stop)))


def _blocks(largest_first: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    block, needed, keys = list[_Piece](), 0, 0
    for piece in largest_first:
        more = len(piece.queries) * len(piece.keys)
        widest = max(keys, len(piece.keys))
        padded = (len(block) + 1) * len(block[0].queries) * widest if block else more
        if block and (padded > BLOCK or padded > PADDING * (needed + more)):
            yield block
            block, needed, widest = [], 0, len(piece.keys)
        block.append(piece)
        needed, keys = needed + more, widest
    if block:
        yield block


def _block(pieces: Sequence[_Piece]) -> Block:
    C, K = len(pieces[0].queries), max(len(p.keys) for p in pieces)
    queries_SC, keys_SK = (torch.zeros(len(pieces), n, dtype=torch.long) for n in (C, K))
    seen_SC = torch.ones(len(pieces), C, dtype=torch.long)  # padding sees one key, so that softmax is defined
    for s, piece in enumerate(pieces):
        c, k = len(piece.queries), len(piece.keys)
        queries_SC[s, :c], keys_SK[s, :k] = torch.tensor(piece.queries), torch.tensor(piece.keys)
        seen_SC[s, :c] = torch.arange(k - c + 1, k + 1)
    hidden_SCK = torch.arange(K) >= seen_SC[:, :, None]
    bias_SCK = torch.zeros(hidden_SCK.shape, dtype=torch.bfloat16).masked_fill_(hidden_SCK, float("-inf"))
    real_SC = torch.arange(C) < torch.tensor([[len(p.queries)] for p in pieces])
    return Block(
        queries_SC.flatten(), keys_SK.flatten(), bias_SCK, None if real_SC.all() else real_SC.flatten()
    )


def packed_attention(
    q_ThD: Tensor, k_TgD: Tensor, v_TgD: Tensor, layout: AttentionLayout, scaling: float
) -> Tensor:
    """softmax(scaling q k^T over the visible keys of each query) v, as (T, h, D)."""
    if q_ThD.is_cuda:
        return _fused(q_ThD, k_TgD, v_TgD, layout, scaling)
    out_ThD: Tensor = _Packed.apply(q_ThD, k_TgD, v_TgD, layout, scaling)
    return out_ThD


def _fused(q_ThD: Tensor, k_TgD: Tensor, v_TgD: Tensor, layout: AttentionLayout, scaling: float) -> Tensor:
    outs = []
    for block in layout.blocks:
        S = block.bias_SCK.shape[0]
        q_ShCD, k_SgKD, v_SgKD = (
            x.index_select(0, at).unflatten(0, (S, -1)).transpose(1, 2)
            for x, at in ((q_ThD, block.queries), (k_TgD, block.keys), (v_TgD, block.keys))
        )
        bias = block.bias_SCK[:, None].to(q_ThD.dtype)
        out_ShCD = F.scaled_dot_product_attention(
            q_ShCD, k_SgKD, v_SgKD, bias, scale=scaling, enable_gqa=q_ThD.shape[1] != k_TgD.shape[1]
        )
        outs.append(out_ShCD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, layout.order_T)


class _Packed(torch.autograd.Function):
    """An autograd function that keeps each block's probabilities for the backward pass, in the inputs' dtype."""

    @staticmethod
    def forward(
        ctx: Any, q_ThD: Tensor, k_TgD: Tensor, v_TgD: Tensor, layout: AttentionLayout, scaling: float
    ) -> Tensor:
        outs, kept = [], []
        g = k_TgD.shape[1]
        for block in layout.blocks:
            S, C, K = block.bias_SCK.shape
            q, k, v = (
                _taken(x, at, S, g)
                for x, at in ((q_ThD, block.queries), (k_TgD, block.keys), (v_TgD, block.keys))
            )
            scores = torch.bmm(q.mul_(scaling), k.transpose(1, 2))
            scores.view(S, -1, C, K).add_(block.bias_SCK[:, None].to(scores.dtype))
            probs = torch.softmax(scores, dim=-1)
            outs.append(_put(torch.bmm(probs, v), S, g, C))
            kept.append(probs)
        ctx.save_for_backward(q_ThD, k_TgD, v_TgD, *kept)
        ctx.layout, ctx.scaling = layout, scaling
        return torch.cat(outs).index_select(0, layout.order_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """dS = P (dP - sum P dP), with dP = dO v^T. A key's gradient is a float32 sum over the queries that see it."""
        q_ThD, k_TgD, v_TgD, *kept = ctx.saved_tensors
        g, wide = k_TgD.shape[1], torch.promote_types(k_TgD.dtype, torch.float32)
        q_grads = []
        k_grad_TgD, v_grad_TgD = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k_TgD, v_TgD))
        for block, probs in zip(ctx.layout.blocks, kept, strict=True):
            S, C, K = block.bias_SCK.shape
            out_grad_QhD = grads[0].index_select(0, block.queries)
            if block.real is not None:
                out_grad_QhD.mul_(block.real[:, None, None])  # padding must not reach the keys
            out_grad = _batched(out_grad_QhD, S, g)
            k, v = _taken(k_TgD, block.keys, S, g), _taken(v_TgD, block.keys, S, g)
            v_grad = torch.bmm(probs.transpose(1, 2), out_grad)
            v_grad_TgD.index_add_(0, block.keys, _put(v_grad, S, g, K).to(wide))
            probs_grad = torch.bmm(out_grad, v.transpose(1, 2))
            slopes = torch._softmax_backward_data(probs_grad, probs, -1, probs.dtype)
            q_grads.append(_put(torch.bmm(slopes, k).mul_(ctx.scaling), S, g, C))
            q = _taken(q_ThD, block.queries, S, g).mul_(ctx.scaling)
            k_grad = torch.bmm(slopes.transpose(1, 2), q)
            k_grad_TgD.index_add_(0, block.keys, _put(k_grad, S, g, K).to(wide))
        q_grad_ThD = torch.cat(q_grads).index_select(0, ctx.layout.order_T)
        return q_grad_ThD, k_grad_TgD.to(k_TgD.dtype), v_grad_TgD.to(v_TgD.dtype), None, None


def _taken(x_TnD: Tensor, at: Tensor, S: int, g: int) -> Tensor:
    """Rows `at` (S * m,) of (T, n, D), as a batch of S * g matrices (n / g * m, D)."""
    return _batched(x_TnD.index_select(0, at), S, g)


def _batched(x: Tensor, S: int, g: int) -> Tensor:
    """(S * m, n, D) to (S * g, n / g * m, D): heads that share a key-value head are rows of one matrix."""
    n, D = x.shape[1:]
    return x.view(S, -1, g, n // g, D).permute(0, 2, 3, 1, 4).reshape(S * g, -1, D)


def _put(x: Tensor, S: int, g: int, m: int) -> Tensor:
    """The inverse of `_batched`: (S * g, n / g * m, D) to (S * m, n, D)."""
    return x.view(S, g, -1, m, x.shape[-1]).permute(0, 3, 1, 2, 4).reshape(S * m, -1, x.shape[-1])


def check_window(sliding_window: int | None, layout: AttentionLayout) -> None:
    """Raises ModelError if a layer's sliding window is shorter than the longest sequence."""
    if sliding_window is not None and sliding_window < layout.longest:
        raise ModelError(
            f"the model sees {sliding_window} tokens back in some layers, but an episode has {layout.longest}; "
            "shorten the episodes (rollout.max_model_len) or choose a model with full attention"
        )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query (1, h, T, D), key and value (1, g, T, D) to (1, T, h, D). No dropout.

    Query and key take the value's dtype: under autocast rotary positions in float32 widen them.

    Raises ModelError if the attention is not a plain softmax over all earlier tokens.
    """
    if softcap is not None or s_aux is not None:
        raise ModelError("the model's attention caps its scores or has sinks; choose a model without")
    check_window(sliding_window, layout)
    q_ThD, k_TgD, v_TgD = (x[0].transpose(0, 1).contiguous().to(value.dtype) for x in (query, key, value))
    return packed_attention(q_ThD, k_TgD, v_TgD, layout, scaling)[None], None


AttentionInterface.register(PACKED, _attend)
