"""The parts of benchmarks.gpu that need no model: kernels and attention against float64, and their time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts import Setup
from benchmarks.timing import Side, in_turns, ratio

# Relative L2 distance to float64, for log-probs, entropies, gradients and outputs of attention.
CLOSE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def kernels(setup: Setup) -> None:
    shapes = [(7, 16, 129)] if setup.toy else [(256, 1024, 151_936), (33, 576, 49_153)]
    for shape in shapes:
        for dtype, allowed in CLOSE.items():
            gaps = _head_gaps(setup, shape, dtype)
            told = ", ".join(f"{gap:.1e}" for gap in gaps)
            print(f"  {shape} {dtype}: log-prob, entropy, gradient {told}; at most {allowed} is wanted")
            assert max(gaps) <= allowed, "the kernel does not compute its definition"
    _head_times(setup)


def _head(setup: Setup, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets: N positions, width H, V words."""
    N, H, V = shape
    dice = torch.Generator(setup.device).manual_seed(V)
    random: dict[str, Any] = {"generator": dice, "device": setup.device}
    hidden_NH = torch.randn(N, H, **random).to(dtype).requires_grad_()
    return hidden_NH, (torch.randn(V, H, **random) / H**0.5).to(dtype), torch.randint(V, (N,), **random)


def _head_gaps(setup: Setup, shape: tuple[int, int, int], dtype: torch.dtype) -> list[float]:
    from rlpost.kernels.linear_logprob import linear_logprob_reference
    from rlpost.kernels.linear_logprob_triton import linear_logprob_triton

    hidden_NH, weight_VH, targets_N = _head(setup, shape, dtype)
    exact_NH = hidden_NH.detach().double().requires_grad_()
    found = linear_logprob_triton(hidden_NH, weight_VH, targets_N, 0.7)
    expected = linear_logprob_reference(exact_NH, weight_VH.double(), targets_N, 0.7)
    for logprobs_N, entropy_N in (found, expected):
        (logprobs_N - 0.3 * entropy_N).sum().backward()
    pairs = [*zip(found, expected, strict=True), (hidden_NH.grad, exact_NH.grad)]
    return [_distance(mine, its) for mine, its in pairs]


def _distance(found: Tensor | None, expected: Tensor | None) -> float:
    """||found - expected|| / ||expected||."""
    assert found is not None, "no gradient"
    assert expected is not None, "no gradient"
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def _head_times(setup: Setup) -> None:
    from rlpost.kernels.linear_logprob import linear_logprob_reference
    from rlpost.kernels.linear_logprob_triton import linear_logprob_triton

    hidden_NH, weight_VH, targets_N = _head(
        setup, (8, 16, 129) if setup.toy else (4096, 1024, 151_936), getattr(torch, setup.dtype)
    )
    peaks = dict[str, str]()

    def side(name: str, head: Callable[..., tuple[Tensor, Tensor]]) -> Side:
        def run() -> int:
            logprobs_N, entropy_N = head(hidden_NH, weight_VH, targets_N, 1.0)
            (logprobs_N + 0.01 * entropy_N).sum().backward()
            setup.wait()
            peaks[name] = setup.peak()
            return len(targets_N)

        return Side(run, setup.peak)

    sides = {"triton": side("triton", linear_logprob_triton), "full": side("full", linear_logprob_reference)}
    times = in_turns(sides, repeats=5, warm_ups=2)
    for name, timing in times.items():
        print(f"  {timing} a position, {peaks[name]}")
    print(f"  time, triton / full logits: {ratio(times['triton'], times['full'])}")


def attention(setup: Setup) -> None:
    """Check and time the attention path of a GPU, on the setup's device."""
    from rlpost.learner.model.packed_attention import AttentionLayout, Segment, _fused, packed_attention

    prefix = Segment(0, 70, None)
    mixed = AttentionLayout.of(
        [prefix, Segment(70, 300, prefix), Segment(370, 9, prefix), Segment(379, 41, None)]
    )
    dtype = getattr(torch, setup.dtype)
    mine = _leaves(_heads(setup, 420), setup.device, dtype)
    exact = _leaves(mine, "cpu", torch.float64)
    scaling = setup.shape["head_dim"] ** -0.5
    found = _fused(*mine, mixed.to(torch.device(setup.device)), scaling)
    expected = packed_attention(*exact, mixed, scaling)
    for out in (found, expected):
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)).sum().backward()
    pairs = [(found, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]
    gaps = [_distance(a.cpu() if a is not None else None, b) for a, b in pairs]
    print(
        f"  output, gradients of q, k, v: {', '.join(f'{gap:.1e}' for gap in gaps)}; {CLOSE[dtype]} is wanted"
    )
    _attention_time(setup, _fused, AttentionLayout.of([Segment(0, setup.row, None)]), scaling)
    assert max(gaps) <= CLOSE[dtype], "packed attention differs"


def _heads(setup: Setup, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(tokens)
    h, g = setup.shape["num_attention_heads"], setup.shape["num_key_value_heads"]
    D = setup.shape["head_dim"]
    q, k, v = (torch.randn(tokens, n, D, generator=dice) for n in (h, g, g))
    return q, k, v


def _leaves(
    heads: tuple[Tensor, Tensor, Tensor], device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.detach().to(device, dtype).requires_grad_() for x in heads)
    return q, k, v


def _attention_time(setup: Setup, attend: Callable[..., Tensor], layout: Any, scaling: float) -> None:
    there = layout.to(torch.device(setup.device))
    states = _leaves(_heads(setup, setup.row), setup.device, getattr(torch, setup.dtype))
    setup.peak()

    def run() -> int:
        attend(*states, there, scaling).sum().backward()
        setup.wait()
        return 1

    timing = in_turns({"a layer, forward and backward": Side(run)}, repeats=5)
    print(f"  {setup.row} tokens, {next(iter(timing.values()))}, {setup.peak()}")
