"""Linear layers with low-rank adapters, x W' + b + s (x A') B', for any number of layers that share their input.

Layers that share an input (query, key, value; gate, up) are one product with their weights stacked. So are their
adapters, with the B matrices on a block diagonal. Besides the two large products, forward and backward, all products
have the rank as one dimension and are added in place, so no tensor of the activations' size is written twice. The
adapters' float32 masters are cast to the activations' dtype here, once per call.

A frozen weight that is not held in the activations' dtype (rlpost/kernels/nf4.py) is given as a function that makes it.
Forward and backward pass call it, and nothing keeps what it returned, so one such weight is in memory at a time.

Shapes: T tokens, I inputs, O outputs of all layers together, r the ranks of all adapters together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Weight = Tensor | Callable[[], Tensor]  # (O, I), or what makes it


@dataclass(frozen=True)
class Pair:
    """One layer's adapter: A (rank, I), B (outputs of the layer, rank), and the index of its first output."""

    A: Tensor
    B: Tensor
    scaling: float
    begin: int


def adapted_linear_reference(
    x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, pairs: Sequence[Pair]
) -> Tensor:
    """The definition of `adapted_linear`, in plain torch."""
    y_TO = F.linear(x_TI, weight_OI, bias_O)
    for pair in pairs:
        low = F.linear(F.linear(x_TI, pair.A), pair.B) * pair.scaling
        y_TO = y_TO + F.pad(low, (pair.begin, weight_OI.shape[0] - pair.begin - pair.B.shape[0]))
    return y_TO


def adapted_linear(x_TI: Tensor, weight: Weight, bias_O: Tensor | None, pairs: Sequence[Pair]) -> Tensor:
    """`adapted_linear_reference` with frozen weight and bias. A and B may have a wider dtype than x, and get gradients
    of that dtype."""
    if not pairs:
        return frozen_linear(x_TI, weight, bias_O)
    y_TO: Tensor = _AdaptedLinear.apply(
        x_TI,
        weight,
        bias_O,
        [(p.scaling, p.begin) for p in pairs],
        *[t for p in pairs for t in (p.A, p.B)],
    )
    return y_TO


def frozen_linear(x: Tensor, weight: Weight, bias_O: Tensor | None) -> Tensor:
    """x W' + b for x (..., I), with a gradient to x alone."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias_O)
    y: Tensor = _FrozenLinear.apply(x, weight, bias_O)
    return y


def _made(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight()


class _FrozenLinear(torch.autograd.Function):
    """A linear layer whose weight is made in each pass. It saves no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor], bias_O: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(), bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.weight() if ctx.needs_input_grad[0] else None, None, None


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        weight: Weight,
        bias_O: Tensor | None,
        places: list[tuple[float, int]],
        *adapters: Tensor,
    ) -> Tensor:
        As, Bs = adapters[::2], adapters[1::2]
        weight_OI = _made(weight)
        A_rI = torch.cat(As).to(x_TI.dtype)
        B_rO = A_rI.new_zeros(A_rI.shape[0], weight_OI.shape[0])
        for rows, B, (scaling, begin) in zip(_rows(As), Bs, places, strict=True):
            B_rO[rows, begin : begin + B.shape[0]] = B.t() * scaling
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        low_Tr = x_TI @ A_rI.t()
        y_TO.addmm_(low_Tr, B_rO)
        ctx.save_for_backward(x_TI, low_Tr, A_rI, B_rO, *adapters)
        ctx.weight, ctx.places = weight, places
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With G = dL/dy: dx = G W + (G B s) A;  dA = (G B s)' x;  dB = s G' (x A')."""
        x_TI, low_Tr, A_rI, B_rO, *adapters = ctx.saved_tensors
        y_grad_TO = grads[0]
        low_grad_Tr = y_grad_TO @ B_rO.t()
        x_grad_TI = None
        if ctx.needs_input_grad[0]:
            x_grad_TI = y_grad_TO @ _made(ctx.weight)
            x_grad_TI.addmm_(low_grad_Tr, A_rI)
        A_grad_rI = low_grad_Tr.t() @ x_TI
        B_grad_rO = low_Tr.t() @ y_grad_TO
        found = list[Tensor]()
        for rows, A, B, (scaling, begin) in zip(
            _rows(adapters[::2]), adapters[::2], adapters[1::2], ctx.places, strict=True
        ):
            B_grad = B_grad_rO[rows, begin : begin + B.shape[0]].t().to(B.dtype) * scaling
            found += [A_grad_rI[rows].to(A.dtype), B_grad.contiguous()]
        return x_grad_TI, None, None, None, *found


def _rows(As: Sequence[Tensor]) -> list[slice]:
    """The slice of each adapter in the ranks of all adapters."""
    found, begin = list[slice](), 0
    for A in As:
        found.append(slice(begin, begin + A.shape[0]))
        begin += A.shape[0]
    return found
