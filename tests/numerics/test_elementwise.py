"""RMS norm, SwiGLU and rotary positions against their definitions and autograd, in odd shapes, dtypes and chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from rlpost.kernels import elementwise as ew

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
Function = Callable[[torch.Tensor], torch.Tensor]


def _norm(rows: int, width: int) -> tuple[torch.Tensor, Function, Function]:
    weight = torch.linspace(0.5, 2.0, width, dtype=torch.float64)
    return (
        _some(rows, width),
        lambda x: ew.rms_norm(x, weight.to(x.dtype), 1e-3),
        lambda x: ew.rms_norm_reference(x, weight.to(x.dtype), 1e-3),
    )


def _swiglu(rows: int, width: int) -> tuple[torch.Tensor, Function, Function]:
    return _some(rows, 2 * width), ew.swiglu, ew.swiglu_reference


def _rotary(rows: int, width: int) -> tuple[torch.Tensor, Function, Function]:
    """Two of three heads' worth of columns, as a view; angles of their own for each row and pair."""
    angles = _some(rows, width)
    cos, sin = (torch.cat((table, table), dim=1) for table in (angles.cos(), angles.sin()))

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(rows, 3, 2 * width)[:, :2]

    return (
        _some(rows, 6 * width),
        lambda x: ew.rotary(heads(x), cos.to(x.dtype), sin.to(x.dtype)),
        lambda x: ew.rotary_reference(heads(x), cos.to(x.dtype), sin.to(x.dtype)),
    )


def _some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("case", [_norm, _swiglu, _rotary])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 18)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("chunk", [1, 40, 1 << 17])
def test_forward_and_backward(
    case: Callable[[int, int], tuple[torch.Tensor, Function, Function]],
    shape: tuple[int, int],
    dtype: torch.dtype,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ew, "CHUNK", chunk)
    inputs, fast, definition = case(*shape)
    mine, theirs = inputs.to(dtype).requires_grad_(), inputs.to(dtype).double().requires_grad_()
    found, expected = fast(mine), definition(theirs)
    slopes = _some(*expected.shape).to(dtype)
    found.backward(slopes)
    expected.backward(slopes.double())
    assert found.dtype == dtype
    assert mine.grad is not None
    assert theirs.grad is not None
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    torch.testing.assert_close(mine.grad.double(), theirs.grad, **tolerance)


def test_by_hand() -> None:
    """mean(3^2, 4^2) + 0 = 12.5; silu(ln 3) = 3/4 ln 3; a quarter turn takes (1, 0) to (0, 1)."""
    norm = ew.rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(norm, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))
    gated = ew.swiglu(torch.tensor([[math.log(3), 2.0]]))
    torch.testing.assert_close(gated, torch.tensor([[1.5 * math.log(3)]]))
    turned = ew.rotary(torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 2), torch.ones(1, 2))
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 1.0]]]))
