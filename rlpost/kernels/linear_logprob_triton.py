"""The head's log-probs and entropy on a GPU; the only file that imports Triton. See rlpost.kernels.linear_logprob.

The vocabulary is processed in blocks. Each block's logits are one product by the vendor's library. Triton then needs
one pass over them where PyTorch would need six: it updates the softmax in the forward pass, and replaces logits by
gradients in the backward pass. Memory is N x block. PyTorch caps the logits of models that do, in passes of its own.
Set TRITON_INTERPRET=1 before the import to run it without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

WORDS = 8192  # words of the vocabulary per block
COLUMNS = 1024  # columns of a row per step


@triton.jit
def _absorb(logits, targets, top, mass, weighted, chosen, begin, width, scale, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Update one row's running maximum, sum of exponentials and sum of x e^x with `width` more logits."""
    row = tl.program_id(0).to(tl.int64)
    m, mass_m, weighted_m = tl.load(top + row), tl.load(mass + row), tl.load(weighted + row)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        real = column < width
        x = tl.load(logits + row * width + column, mask=real, other=float("-inf")).to(tl.float32) * scale
        larger = tl.maximum(m, tl.max(x, 0))
        kept = tl.exp(m - larger)
        p = tl.exp(x - larger)
        mass_m = mass_m * kept + tl.sum(p, 0)
        weighted_m = weighted_m * kept + tl.sum(tl.where(real, p * x, 0.0), 0)
        m = larger
    place = tl.load(targets + row) - begin
    inside = (place >= 0) & (place < width)
    x = tl.load(logits + row * width + place, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(chosen + row, x, mask=inside)
    tl.store(top + row, m)
    tl.store(mass + row, mass_m)
    tl.store(weighted + row, weighted_m)


@triton.jit
def _slope(  # type: ignore[no-untyped-def]
    logits, targets, total, entropy, logprob_grad, entropy_grad, begin, width, scale, COLUMNS: tl.constexpr
):
    """Replace the logits of one row by the loss's gradients with respect to them."""
    row = tl.program_id(0).to(tl.int64)
    log_z, e = tl.load(total + row), tl.load(entropy + row)
    by_logprob, by_entropy = tl.load(logprob_grad + row), tl.load(entropy_grad + row)
    place = tl.load(targets + row) - begin
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = logits + row * width + column
        logp = tl.load(at, mask=column < width, other=0.0).to(tl.float32) * scale - log_z
        p = tl.exp(logp)
        slope = tl.where(column == place, by_logprob, 0.0) - p * (by_logprob + by_entropy * (logp + e))
        tl.store(at, (slope * scale).to(logits.dtype.element_ty), mask=column < width)


@dataclass(frozen=True)
class _Head:
    """The frozen head, and the cap of its logits."""

    weight_VH: Tensor
    bias_V: Tensor | None
    softcap: float | None

    def logits(self, hidden_NH: Tensor, words: slice) -> Tensor:
        bias_B = None if self.bias_V is None else self.bias_V[words]
        logits_NB = F.linear(hidden_NH, self.weight_VH[words], bias_B)
        if self.softcap is None:
            return logits_NB
        return logits_NB.float().div_(self.softcap).tanh_().mul_(self.softcap)

    def damping(self, logits_NB: Tensor) -> Tensor | None:
        """The cap's slope at capped logits, 1 - tanh^2; None where nothing caps."""
        return None if self.softcap is None else 1.0 - (logits_NB / self.softcap).square()


def linear_logprob_triton(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float,
    words: int = WORDS,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `linear_logprob`, with `words` of the vocabulary at a time; not for float64."""
    head = _Head(weight_VH.detach(), None if bias_V is None else bias_V.detach(), softcap)
    logprobs_N, entropy_N = _LinearLogprob.apply(hidden_NH, head, targets_N, temperature, words)
    return logprobs_N, entropy_N


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, head: _Head, targets_N: Tensor, temperature: float, words: int
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_NH.shape[0], head.weight_VH.shape[0]
        top_N = torch.full((N,), float("-inf"), dtype=torch.float32, device=hidden_NH.device)
        mass_N, weighted_N, chosen_N = (torch.zeros_like(top_N) for _ in range(3))
        for begin in range(0, V if N else 0, words):
            logits_NB = head.logits(hidden_NH, slice(begin, begin + words))
            _absorb[(N,)](
                logits_NB, targets_N, top_N, mass_N, weighted_N, chosen_N,
                begin, logits_NB.shape[1], 1.0 / temperature, COLUMNS=COLUMNS,
            )  # fmt: skip
        total_N = top_N + mass_N.log()
        entropy_N = total_N - weighted_N / mass_N
        ctx.save_for_backward(hidden_NH, targets_N, entropy_N, total_N)
        ctx.head, ctx.temperature, ctx.words = head, temperature, words
        return chosen_N - total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden_NH, targets_N, entropy_N, total_N = ctx.saved_tensors
        logprob_grad_N, entropy_grad_N = (grad.float().contiguous() for grad in grads)
        found_NH = torch.zeros_like(hidden_NH, dtype=torch.float32)
        N, V = hidden_NH.shape[0], ctx.head.weight_VH.shape[0]
        for begin in range(0, V if N else 0, ctx.words):
            block = slice(begin, begin + ctx.words)
            logits_NB = ctx.head.logits(hidden_NH, block)
            damping_NB = ctx.head.damping(logits_NB)
            _slope[(N,)](
                logits_NB, targets_N, total_N, entropy_N, logprob_grad_N, entropy_grad_N,
                begin, logits_NB.shape[1], 1.0 / ctx.temperature, COLUMNS=COLUMNS,
            )  # fmt: skip
            if damping_NB is not None:
                logits_NB = logits_NB.mul_(damping_NB).to(hidden_NH.dtype)
            found_NH += logits_NB @ ctx.head.weight_VH[block]
        return found_NH.to(hidden_NH.dtype), None, None, None, None
