"""The tiled head against an independent float64 softmax, forward and backward, in odd shapes and dtypes."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlpost.kernels.linear_logprob import linear_logprob, linear_logprob_reference

SHAPES = [(1, 3, 2), (7, 5, 11), (13, 64, 129), (33, 17, 512)]
TILES = [(1, 1), (4, 7), (1000, 1000)]
# 17 thousand tiles of a single logit take seconds, and show nothing that 17 hundred do not.
CASES = [case for case in itertools.product(SHAPES, TILES) if case != ((33, 17, 512), (1, 1))]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def _inputs(n: int, h: int, v: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + v)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (torch.randn(v, h, generator=generator, dtype=torch.float64) / math.sqrt(h)).to(dtype)
    return hidden, weight, torch.randint(v, (n,), generator=generator)


def _by_definition(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities written out: exp / sum of exp, in float64."""
    logits = (hidden.double() @ weight.double().T) / temperature
    weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
    probs = weights / weights.sum(dim=1, keepdim=True)
    chosen = torch.stack([probs[i, t] for i, t in enumerate(targets.tolist())])
    return chosen.log(), -(probs * probs.log()).sum(dim=1)


@pytest.mark.parametrize(("shape", "tile"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_and_backward(
    shape: tuple[int, int, int], dtype: torch.dtype, temperature: float, tile: tuple[int, int]
) -> None:
    hidden, weight, targets = _inputs(*shape, dtype)
    witness = hidden.detach().double().requires_grad_()
    expected = _by_definition(witness, weight, targets, temperature)
    found = linear_logprob(hidden, weight, targets, temperature, tile)
    slopes = torch.randn(2, shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (expected[0] * slopes[0] + expected[1] * slopes[1]).sum().backward()
    (found[0] * slopes[0] + found[1] * slopes[1]).sum().backward()
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(found[0].double(), expected[0], **tolerance)
    torch.testing.assert_close(found[1].double(), expected[1], **tolerance)
    assert hidden.grad is not None
    assert witness.grad is not None
    torch.testing.assert_close(hidden.grad.double(), witness.grad, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_and_fast_path_agree(dtype: torch.dtype) -> None:
    hidden, weight, targets = _inputs(33, 17, 512, dtype)
    for fast, plain in zip(
        linear_logprob(hidden, weight, targets, 0.9, (8, 100)),
        linear_logprob_reference(hidden, weight, targets, 0.9),
        strict=True,
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        assert fast.dtype == torch.float32


def test_gradcheck() -> None:
    hidden, weight, targets = _inputs(5, 4, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda h: linear_logprob(h, weight, targets, 0.8, (2, 4)), (hidden,))


def test_hand_computed_numbers() -> None:
    """Logits (0, ln 3) give probabilities 1/4 and 3/4; entropy ln 4 - 3/4 ln 3."""
    weight = torch.tensor([[0.0], [math.log(3.0)]])
    logprobs, entropy = linear_logprob(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    torch.testing.assert_close(logprobs, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(entropy, torch.full((2,), math.log(4) - 0.75 * math.log(3)))


def test_no_positions_still_carry_a_zero_gradient() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    logprobs, _ = linear_logprob(hidden, torch.ones(9, 4), torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 4)


@pytest.mark.parametrize("hidden_learns", [True, False])
@pytest.mark.parametrize("tile", TILES)
def test_a_head_that_learns(tile: tuple[int, int], hidden_learns: bool) -> None:
    """Full fine-tuning trains the head. Its gradient and the hidden states' are those of the definition."""
    hidden, weight, targets = _inputs(13, 16, 29, torch.float64)
    hidden.requires_grad_(hidden_learns)
    weight.requires_grad_()
    wanted = (hidden, weight) if hidden_learns else (weight,)
    slopes = torch.randn(2, 13, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for k in (0, 1):  # log-probs alone, entropy alone
        expected = torch.autograd.grad(
            (_by_definition(hidden, weight, targets, 0.7)[k] * slopes[k]).sum(), wanted
        )
        found = torch.autograd.grad(
            (linear_logprob(hidden, weight, targets, 0.7, tile)[k] * slopes[k]).sum(), wanted
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = _inputs(5, 4, 9, torch.float32)
    linear_logprob(hidden, weight, targets)[0].sum().backward()
    assert weight.grad is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_greedy_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        linear_logprob(torch.ones(1, 1), torch.ones(2, 1), torch.tensor([0]), temperature)


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    """Logits 0 to 3000 in a rising order, a tile each: log-probs are differences, entropy is that of the top two."""
    weight = torch.tensor([[0.0], [1000.0], [2999.0], [3000.0]])
    logprobs, entropy = linear_logprob(torch.ones(4, 1), weight, torch.arange(4), 1.0, (3, 1))
    tail = math.log1p(math.exp(-1.0))
    torch.testing.assert_close(logprobs, torch.tensor([-3000.0, -2000.0, -1.0, 0.0]) - tail)
    p = 1.0 / (1.0 + math.exp(-1.0))
    torch.testing.assert_close(entropy, torch.full((4,), -p * math.log(p) - (1 - p) * math.log(1 - p)))


def test_triton() -> None:
    """In a process of its own: Triton decides at its first import whether its interpreter runs the kernels."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "tests.numerics.triton_cases"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["agrees"] * 12
