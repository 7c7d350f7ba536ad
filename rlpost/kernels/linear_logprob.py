"""Log-probs and entropy of chosen tokens straight from hidden states, without the batch's logits.

N positions, H hidden size, V vocabulary. The fast path goes over tiles of some positions and some words, keeps three
running numbers a position (online softmax: largest logit, sum of exponentials, their weighted sum), and computes
each tile again in the backward pass: memory is a tile instead of N x V. On a GPU the same is done by Triton
(rlpost.kernels.linear_logprob_triton). The head is frozen, so it gets no gradient.
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

    The product is rounded to the inputs' dtype; all that follows is at least float32, and so is the result.
    """
    logits_NV = _widened(F.linear(hidden_NH, weight_VH.detach())) / temperature
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
    """`linear_logprob_reference` in tiles of so many positions and words; N may be 0.

    Differentiable in `hidden_NH` only. Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(
            f"temperature {temperature} must be positive: greedy decoding has no log-probs to learn from"
        )
    if hidden_NH.is_cuda and hidden_NH.dtype != torch.float64:
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
    """Online softmax of C positions (Milakov and Gimelshein 2018), with the sum that entropy needs."""

    def __init__(self, targets_C: Tensor, dtype: torch.dtype) -> None:
        self.targets_C = targets_C
        self.top_C = torch.full(targets_C.shape, float("-inf"), dtype=dtype, device=targets_C.device)
        self.mass_C, self.weighted_C, self.chosen_C = (torch.zeros_like(self.top_C) for _ in range(3))

    def absorb(self, logits_CB: Tensor, begin: int) -> None:
        """Take in the logits of words `begin` on; overwrites them."""
        place_C = self.targets_C - begin
        inside_C = (place_C >= 0) & (place_C < logits_CB.shape[1])
        here_C = logits_CB.gather(1, place_C.clamp(0, logits_CB.shape[1] - 1)[:, None])[:, 0]
        self.chosen_C = torch.where(inside_C, here_C, self.chosen_C)
        top_C = torch.maximum(self.top_C, logits_CB.amax(dim=1))
        shift_C = self.top_C - top_C
        kept_C = shift_C.exp()
        exps_CB = logits_CB.sub_(top_C[:, None]).exp()
        # sums are of e^(x - top) and (x - top) e^(x - top); an old sum is moved to the new top. At first it is 0.
        moved_C = torch.where(kept_C > 0.0, self.mass_C * shift_C, 0.0)
        self.weighted_C = kept_C * (self.weighted_C + moved_C) + torch.linalg.vecdot(exps_CB, logits_CB)
        self.mass_C = kept_C * self.mass_C + exps_CB.sum(dim=1)
        self.top_C = top_C

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-prob of the target, entropy, and log of the partition sum."""
        log_mass_C = self.mass_C.log()
        logprobs_C = (self.chosen_C - self.top_C) - log_mass_C  # in this order large logits cancel exactly
        return logprobs_C, log_mass_C - self.weighted_C / self.mass_C, self.top_C + log_mass_C


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
        for rows in _slices(hidden_NH.shape[0], tile[0]):
            running = _Running(targets_N[rows], wide)
            for words in _slices(weight_VH.shape[0], tile[1]):
                running.absorb(_tile_logits(hidden_NH[rows], weight_VH[words], temperature), words.start)
            logprobs_N[rows], entropy_N[rows], total_N[rows] = running.result()
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, entropy_N, total_N)
        ctx.temperature, ctx.tile = temperature, tile
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """d logprob / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)."""
        hidden_NH, weight_VH, targets_N, entropy_N, total_N = ctx.saved_tensors
        logprob_grad_N, entropy_grad_N = grads
        hidden_grad_NH = torch.empty_like(hidden_NH)
        for rows in _slices(hidden_NH.shape[0], ctx.tile[0]):
            # The one-hot part is a row of the weight; what is left of the slope is -p (slope log p + offset).
            found_CH = weight_VH[targets_N[rows]].to(total_N.dtype) * logprob_grad_N[rows, None]
            slope_C1, total_C1 = entropy_grad_N[rows, None], total_N[rows, None]
            offset_C1 = logprob_grad_N[rows, None] + slope_C1 * entropy_N[rows, None]
            for words in _slices(weight_VH.shape[0], ctx.tile[1]):
                logits_CB = _tile_logits(hidden_NH[rows], weight_VH[words], ctx.temperature)
                probs_CB = logits_CB.sub_(total_C1).exp()
                slopes_CB = probs_CB.mul_(logits_CB.mul_(slope_C1).add_(offset_C1))
                found_CH -= slopes_CB.to(weight_VH.dtype) @ weight_VH[words]
            hidden_grad_NH[rows] = found_CH.div_(ctx.temperature)
        return hidden_grad_NH, None, None, None, None
