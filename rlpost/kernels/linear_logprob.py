"""Log-probs and entropy of chosen tokens straight from hidden states, without the batch's logits.

N positions, H hidden size, V vocabulary. The fast path computes the logits of `chunk` positions at a time, keeps
only two numbers a position, and computes them again in the backward pass: memory is chunk x V instead of N x V.
The head is frozen, so it gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MiB in fp32


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
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_logprob_reference` in chunks of `chunk` positions (default: about 16 MiB of logits); N may be 0.

    Differentiable in `hidden_NH` only. Raises ValueError for a temperature that is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(
            f"temperature {temperature} must be positive: greedy decoding has no log-probs to learn from"
        )
    rows = chunk if chunk is not None else max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
    logprobs_N, entropy_N = _LinearLogprob.apply(hidden_NH, weight_VH, targets_N, temperature, rows)
    return logprobs_N, entropy_N


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _chunk_logprobs(hidden_CH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(_widened(F.linear(hidden_CH, weight_VH)).div_(temperature), dim=-1)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
        logprobs_N = hidden_NH.new_empty(hidden_NH.shape[0], dtype=dtype)
        entropy_N = torch.empty_like(logprobs_N)
        for start in range(0, hidden_NH.shape[0], chunk):
            part = slice(start, start + chunk)
            logprobs_CV = _chunk_logprobs(hidden_NH[part], weight_VH, temperature)
            logprobs_N[part] = logprobs_CV.gather(1, targets_N[part, None]).squeeze(1)
            entropy_N[part] = -(logprobs_CV.exp() * logprobs_CV).sum(dim=-1)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """d logprob / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)."""
        hidden_NH, weight_VH, targets_N, entropy_N = ctx.saved_tensors
        logprob_grad_N, entropy_grad_N = grads
        hidden_grad_NH = torch.empty_like(hidden_NH)
        for start in range(0, hidden_NH.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logprobs_CV = _chunk_logprobs(hidden_NH[part], weight_VH, ctx.temperature)
            weights_C1 = logprob_grad_N[part, None]
            slopes_CV = (
                logprobs_CV.add(entropy_N[part, None]).mul_(entropy_grad_N[part, None]).add_(weights_C1)
            )
            logit_grad_CV = slopes_CV.mul_(logprobs_CV.exp()).neg_()
            logit_grad_CV.scatter_add_(1, targets_N[part, None], weights_C1.to(logit_grad_CV.dtype))
            logit_grad_CV.div_(ctx.temperature)
            hidden_grad_NH[part] = logit_grad_CV.to(weight_VH.dtype) @ weight_VH
        return hidden_grad_NH, None, None, None, None
