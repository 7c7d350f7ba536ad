"""Log-probs and entropy of chosen tokens from hidden states, without storing the batch's logits.

N positions, H hidden size, V vocabulary. The fast path processes tiles of some positions and some words, and keeps
three running numbers per position (online softmax: largest logit, sum of exponentials, their weighted sum), so memory
is one tile instead of N x V. If a gradient is needed, it also keeps the expected row of the head, sum of p W. The
log-prob's gradient needs nothing else, so its backward pass has no product. The gradients of the entropy, and of a head
that trains (full fine-tuning), compute the tiles again. On a GPU a frozen head's work is done by Triton
(rlpost.kernels.linear_logprob_triton).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = (256, 4096)  # positions, words: 4 MiB in fp32


def linear_logprob_reference(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The definition: log softmax(hidden @ weight.T / temperature)[targets] and the entropy, in nats; both (N,).

    The product is rounded to the inputs' dtype; everything after it, and the result, is at least float32.
    """
    logits_NV = _widened(F.linear(hidden_NH, weight_VH)) / temperature
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
    return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def linear_logprob(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    tile: tuple[int, int] = TILE,
) -> tuple[Tensor, Tensor]:
    """`linear_logprob_reference` in tiles of the given numbers of positions and words; N may be 0.

    Differentiable in `hidden_NH` and `weight_VH`. Raises ValueError if the temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(
            f"temperature {temperature} must be positive: greedy decoding has no log-probs to learn from"
        )
    head_learns = weight_VH.requires_grad and torch.is_grad_enabled()
    if hidden_NH.is_cuda and hidden_NH.dtype != torch.float64 and not head_learns:
        from rlpost.kernels.linear_logprob_triton import linear_logprob_triton

        return linear_logprob_triton(hidden_NH, weight_VH, targets_N, temperature)
    logprobs_N, entropy_N = _LinearLogprob.apply(hidden_NH, weight_VH, targets_N, temperature, tile)
    return logprobs_N, entropy_N


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _tile_logits(hidden_CH: Tensor, weight_BH: Tensor, temperature: float) -> Tensor:
    logits_CB = _widened(F.linear(hidden_CH, weight_BH))
    return logits_CB if temperature == 1.0 else logits_CB.div_(temperature)


class _Running:
    """Online softmax of C positions (Milakov and Gimelshein 2018), with the sum for the entropy. With `keep_rows` it
    also averages the head's rows over words, for the log-prob's gradient."""

    def __init__(self, targets_C: Tensor, weight_VH: Tensor, dtype: torch.dtype, keep_rows: bool) -> None:
        self.targets_C, self.weight_VH = targets_C, weight_VH
        self.top_C = torch.full(targets_C.shape, float("-inf"), dtype=dtype, device=targets_C.device)
        self.mass_C, self.weighted_C, self.chosen_C = (torch.zeros_like(self.top_C) for _ in range(3))
        self.rows_CH = (
            self.top_C.new_zeros(len(targets_C), weight_VH.shape[1]) if keep_rows else None
        )  # sum of e^(x - top) W

    def absorb(self, logits_CB: Tensor, words: slice) -> None:
        """Add the logits of `words`. They are overwritten."""
        place_C = self.targets_C - words.start
        inside_C = (place_C >= 0) & (place_C < logits_CB.shape[1])
        here_C = logits_CB.gather(1, place_C.clamp(0, logits_CB.shape[1] - 1)[:, None])[:, 0]
        self.chosen_C = torch.where(inside_C, here_C, self.chosen_C)
        top_C = torch.maximum(self.top_C, logits_CB.amax(dim=1))
        shift_C = self.top_C - top_C
        kept_C = shift_C.exp()
        exps_CB = logits_CB.sub_(top_C[:, None]).exp()
        # Sums are of e^(x - top) and (x - top) e^(x - top). An old sum, at first 0, is rescaled to the new top.
        moved_C = torch.where(kept_C > 0.0, self.mass_C * shift_C, 0.0)
        self.weighted_C = kept_C * (self.weighted_C + moved_C) + torch.linalg.vecdot(exps_CB, logits_CB)
        self.mass_C = kept_C * self.mass_C + exps_CB.sum(dim=1)
        if self.rows_CH is not None:
            weight_BH = self.weight_VH[words]
            self.rows_CH.mul_(kept_C[:, None]).add_(exps_CB.to(weight_BH.dtype) @ weight_BH)
        self.top_C = top_C

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-prob of the target, entropy, and log of the partition sum."""
        log_mass_C = self.mass_C.log()
        logprobs_C = (self.chosen_C - self.top_C) - log_mass_C  # in this order large logits cancel exactly
        return logprobs_C, log_mass_C - self.weighted_C / self.mass_C, self.top_C + log_mass_C

    def target_less_mean(self) -> Tensor:
        """The target's row of the head minus the expected row, (C, H): d log-prob / d hidden at temperature 1."""
        assert self.rows_CH is not None, "only with keep_rows"
        return self.weight_VH[self.targets_C] - self.rows_CH.div_(self.mass_C[:, None])


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_N = hidden_NH.new_empty(hidden_NH.shape[0], dtype=wide)
        entropy_N, total_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        learns = ctx.needs_input_grad[0]
        slope_NH = hidden_NH.new_empty(hidden_NH.shape, dtype=wide) if learns else None
        for rows in _slices(hidden_NH.shape[0], tile[0]):
            running = _Running(targets_N[rows], weight_VH, wide, learns)
            for words in _slices(weight_VH.shape[0], tile[1]):
                running.absorb(_tile_logits(hidden_NH[rows], weight_VH[words], temperature), words)
            logprobs_N[rows], entropy_N[rows], total_N[rows] = running.result()
            if slope_NH is not None:
                slope_NH[rows] = running.target_less_mean()
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, entropy_N, total_N, slope_NH)
        ctx.temperature, ctx.tile = temperature, tile
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """d logprob / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)."""
        hidden_NH, weight_VH, *_, slope_NH = ctx.saved_tensors
        logprob_grad_N, entropy_grad_N = grads
        hidden_grad, weight_grad = None, None
        if slope_NH is not None:
            hidden_grad = torch.zeros_like(slope_NH)
            if logprob_grad_N is not None:
                hidden_grad.addcmul_(slope_NH, logprob_grad_N[:, None])
            if entropy_grad_N is not None:
                _add_entropy_gradient(hidden_grad, entropy_grad_N, ctx)
            hidden_grad = hidden_grad.div_(ctx.temperature).to(hidden_NH.dtype)
        if ctx.needs_input_grad[1]:
            weight_grad = _weight_gradient(logprob_grad_N, entropy_grad_N, ctx).to(weight_VH.dtype)
        return hidden_grad, weight_grad, None, None, None


def _add_entropy_gradient(hidden_grad_NH: Tensor, entropy_grad_N: Tensor, ctx: Any) -> None:
    """Add the sum over words of -p (log p + entropy) W, times the temperature; the tiles are computed again."""
    hidden_NH, weight_VH, _, entropy_N, total_N, _ = ctx.saved_tensors
    for rows in _slices(hidden_NH.shape[0], ctx.tile[0]):
        slope_C1, entropy_C1 = entropy_grad_N[rows, None], entropy_N[rows, None]
        for words in _slices(weight_VH.shape[0], ctx.tile[1]):
            logits_CB = _tile_logits(hidden_NH[rows], weight_VH[words], ctx.temperature)
            logprobs_CB = logits_CB.sub_(total_N[rows, None])
            slopes_CB = logprobs_CB.exp().mul_(logprobs_CB.add_(entropy_C1)).mul_(slope_C1)
            hidden_grad_NH[rows] -= slopes_CB.to(weight_VH.dtype) @ weight_VH[words]


def _weight_gradient(logprob_grad_N: Tensor | None, entropy_grad_N: Tensor | None, ctx: Any) -> Tensor:
    """The sum over positions of d loss / d logit times the hidden state, (V, H); the tiles are computed again."""
    hidden_NH, weight_VH, targets_N, entropy_N, total_N, _ = ctx.saved_tensors
    zeros_N = torch.zeros_like(total_N)
    logprob_grad_N = zeros_N if logprob_grad_N is None else logprob_grad_N
    entropy_grad_N = zeros_N if entropy_grad_N is None else entropy_grad_N
    found_VH = torch.zeros(weight_VH.shape, dtype=total_N.dtype, device=weight_VH.device)
    for rows in _slices(hidden_NH.shape[0], ctx.tile[0]):
        hidden_CH = hidden_NH[rows]
        found_VH.index_add_(0, targets_N[rows], logprob_grad_N[rows, None] * hidden_CH)
        for words in _slices(weight_VH.shape[0], ctx.tile[1]):
            logprobs_CB = _tile_logits(hidden_CH, weight_VH[words], ctx.temperature).sub_(total_N[rows, None])
            probs_CB = logprobs_CB.exp()
            slopes_CB = logprobs_CB.add_(entropy_N[rows, None]).mul_(entropy_grad_N[rows, None])
            slopes_CB.add_(logprob_grad_N[rows, None]).mul_(probs_CB)
            found_VH[words] -= slopes_CB.t().to(hidden_CH.dtype) @ hidden_CH
    return found_VH.div_(ctx.temperature)
