"""RMS norm, SwiGLU and rotary positions with hand-written backward passes: the operations between the large products.

Each processes its rows in chunks that fit in the cache, computes in float32, takes and returns the activations' dtype,
and keeps only its input for the backward pass. The definitions (`*_reference`) are those of transformers. Weights are
frozen and get no gradient.

Shapes: T rows, H width, I half the width of gate and up together, n heads of size D.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 17  # elements; on a GPU one chunk holds all rows


def rms_norm_reference(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019); the norm is at least float32."""
    wide = x_TH.to(_wide(x_TH))
    return weight_H * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x_TH.dtype)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference`, differentiable in x."""
    y_TH: Tensor = _RmsNorm.apply(x_TH, weight_H, eps)
    return y_TH


def swiglu_reference(gate_up_T2I: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020); gate is the left half."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    return F.silu(gate_TI) * up_TI


def swiglu(gate_up_T2I: Tensor) -> Tensor:
    """`swiglu_reference`, differentiable."""
    y_TI: Tensor = _SwiGlu.apply(gate_up_T2I)
    return y_TI


def rotary_reference(x_TnD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin (Su et al. 2021). The two halves of cos are equal, and so are those of sin."""
    left, right = x_TnD.chunk(2, dim=-1)
    return x_TnD * cos_TD[:, None] + torch.cat((-right, left), dim=-1) * sin_TD[:, None]


def rotary(x_TnD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """`rotary_reference`, differentiable in x, which may be non-contiguous."""
    y_TnD: Tensor = _Rotary.apply(x_TnD, cos_TD, sin_TD)
    return y_TnD


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(x: Tensor) -> Iterator[slice]:
    rows = x.shape[0] if x.is_cuda else max(1, CHUNK // max(1, x[:1].numel()))
    for start in range(0, x.shape[0], max(1, rows)):
        yield slice(start, start + rows)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        y_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
        scale_T1 = x_TH.new_empty((*x_TH.shape[:-1], 1), dtype=_wide(x_TH))
        weight = weight_H.to(scale_T1.dtype)
        for part in _chunks(x_TH):
            wide = x_TH[part].to(scale_T1.dtype)
            scale = scale_T1[part]
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True, out=scale)
            scale.square_().div_(x_TH.shape[-1]).add_(eps).rsqrt_()
            y_TH[part] = (wide * scale).mul_(weight)
        ctx.save_for_backward(x_TH, weight_H, scale_T1)
        return y_TH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """With n = x scale and g = dL/dy weight: dx = scale (g - n mean(g n))."""
        x_TH, weight_H, scale_T1 = ctx.saved_tensors
        weight = weight_H.to(scale_T1.dtype)
        x_grad_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
        for part in _chunks(x_TH):
            scale = scale_T1[part]
            normal = x_TH[part] * scale
            slopes = grads[0][part] * weight
            share = (slopes * normal).mean(-1, keepdim=True)
            x_grad_TH[part] = slopes.sub_(normal.mul_(share)).mul_(scale)
        return x_grad_TH, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2I: Tensor) -> Tensor:
        half = gate_up_T2I.shape[-1] // 2
        y_TI = gate_up_T2I.new_empty(gate_up_T2I.shape[0], half)
        for part in _chunks(gate_up_T2I):
            torch.mul(F.silu(gate_up_T2I[part, :half]), gate_up_T2I[part, half:], out=y_TI[part])
        ctx.save_for_backward(gate_up_T2I)
        return y_TI

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        [gate_up_T2I] = ctx.saved_tensors
        half = gate_up_T2I.shape[-1] // 2
        found_T2I = torch.empty_like(gate_up_T2I)
        for part in _chunks(gate_up_T2I):
            gate, up, slopes = gate_up_T2I[part, :half], gate_up_T2I[part, half:], grads[0][part]
            torch.ops.aten.silu_backward.grad_input(slopes * up, gate, grad_input=found_T2I[part, :half])
            torch.mul(F.silu(gate), slopes, out=found_T2I[part, half:])
        return found_T2I


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TnD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        return _rotated(x_TnD, cos_TD, sin_TD, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient is rotated back: the transpose of a rotation is its inverse."""
        cos_TD, sin_TD = ctx.saved_tensors
        return _rotated(grads[0], cos_TD, sin_TD, -1.0), None, None


def _rotated(x_TnD: Tensor, cos_TD: Tensor, sin_TD: Tensor, sign: float) -> Tensor:
    half = x_TnD.shape[-1] // 2
    cos, sin = cos_TD[:, None, :half], sin_TD[:, None, :half]
    y_TnD = torch.empty(x_TnD.shape, dtype=x_TnD.dtype, device=x_TnD.device)
    left, right = x_TnD[..., :half], x_TnD[..., half:]
    torch.mul(left, cos, out=y_TnD[..., :half]).addcmul_(right, sin, value=-sign)
    torch.mul(right, cos, out=y_TnD[..., half:]).addcmul_(left, sin, value=sign)
    return y_TnD
