"""The head's Triton path under Triton's interpreter against its plain definition; run by test_linear_logprob.

What it computes, on any machine; not how fast. Needs TRITON_INTERPRET=1 before Triton's first import.
"""

from __future__ import annotations

import itertools

import torch

from rlpost.kernels.linear_logprob import linear_logprob_reference
from rlpost.kernels.linear_logprob_triton import linear_logprob_triton

SHAPES = [(7, 5, 11), (3, 64, 129), (4, 17, 1500)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
WORDS = (100, 2000)


def check(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    words: int,
    has_bias: bool = False,
    cap: float | None = None,
) -> None:
    n, h, v = shape
    generator = torch.Generator().manual_seed(v)
    hidden = torch.randn(n, h, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(v, h, generator=generator) / h**0.5).to(dtype)
    targets = torch.randint(v, (n,), generator=generator)
    slopes = torch.randn(2, n, generator=generator)
    bias = torch.randn(v, generator=generator).to(dtype) if has_bias else None
    exact = hidden.detach().double().requires_grad_()
    found = linear_logprob_triton(hidden, weight, targets, 0.7, words, bias_V=bias, softcap=cap)
    wide = None if bias is None else bias.double()
    expected = linear_logprob_reference(exact, weight.double(), targets, 0.7, bias_V=wide, softcap=cap)
    (found[0] * slopes[0] + found[1] * slopes[1]).sum().backward()
    (expected[0] * slopes[0] + expected[1] * slopes[1]).sum().backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    for mine, theirs in (*zip(found, expected, strict=True), (hidden.grad, exact.grad)):
        torch.testing.assert_close(mine.double(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


if __name__ == "__main__":
    for case in itertools.product(SHAPES, TOLERANCE, WORDS):
        check(*case)
        print("agrees")
    for dtype in TOLERANCE:
        check(SHAPES[1], dtype, WORDS[0], has_bias=True, cap=0.8)
        print("agrees")
