"""The fused adapter layer against its definition in float64, forward and backward, in odd shapes and dtypes."""

from __future__ import annotations

import pytest
import torch

from rlpost.kernels.lora_linear import lora_linear, lora_linear_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def test_by_hand() -> None:
    """Base 1, input 2, A = 3, B = 5, scaling 0.5: 1 + 0.5 * 5 * 3 * 2 = 16."""
    base, inputs, A, B = (torch.tensor([[x]]) for x in (1.0, 2.0, 3.0, 5.0))
    assert lora_linear(base, inputs, A, B, 0.5).item() == 16.0
    assert base.item() == 1.0


@pytest.mark.parametrize("lead", [(1,), (3, 5), (2, 1, 7)])
@pytest.mark.parametrize("sizes", [(5, 3, 1), (17, 33, 4)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_forward_and_backward(lead: tuple[int, ...], sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    n_in, n_out, rank = sizes
    generator = torch.Generator().manual_seed(1)
    shapes = [(*lead, n_out), (*lead, n_in), (rank, n_in), (n_out, rank)]
    wide = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).double() for s in shapes]
    exact = [x.clone().requires_grad_() for x in wide]
    fast = [x.to(dtype).requires_grad_() for x in wide]
    expected, found = lora_linear_reference(*exact, 0.7), lora_linear(*fast, 0.7)
    slopes = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    expected.backward(slopes.double())
    found.backward(slopes)
    scale = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * max(1.0, expected.abs().max().item())}
    torch.testing.assert_close(found.double(), expected, **scale)
    for x, y in zip(fast, exact, strict=True):
        assert x.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, **scale)
