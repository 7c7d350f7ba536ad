"""NF4 against the paper's table and construction, against brute force, and against bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from rlpost.kernels import nf4
from rlpost.kernels.nf4 import BLOCK, GROUP, LEVELS, dequantize, magnitude_levels, quantize, round_trip

CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 5), (7, 64), (33, 96), (300, 65), (129, 257)]
_CODES = (
    "01b67e75a1f05103ebd2ee1dad2ff3edf622a214ebd1dd0847ea9e636eaaf86a1ee2ed0734d54a1f171160e061171f1a"
    "45d4370de2ee1a68faae636e9ae7480dd1dbe412a226fde3ff2dad1ee2dbe30150f1a57e76b1017115fdf4114fe06229"
)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install bitsandbytes: 125 MB)",
)


def weights(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def test_the_levels_are_the_normal_distributions_quantiles() -> None:
    """Section 3 of the paper: eight probabilities from d to 1/2, nine from 1/2 to 1 - d; 1/2 is in both halves."""
    d = (1 / 32 + 1 / 30) / 2
    probabilities = [*np.linspace(d, 0.5, 8), *np.linspace(0.5, 1 - d, 9)[1:]]
    quantiles = norm.ppf(probabilities)
    np.testing.assert_allclose(LEVELS, quantiles / quantiles.max(), rtol=0, atol=3e-7)
    assert (LEVELS[0], LEVELS[7], LEVELS[15]) == (-1.0, 0.0, 1.0)


def test_the_levels_of_magnitudes_by_hand() -> None:
    """Two ends of the table: in the last decade 64 parts of 0.9 / 64, in the first one part of 0.9."""
    levels = magnitude_levels(CPU)
    assert len(levels) == 256
    assert torch.equal(levels, levels.sort().values)
    assert levels[255] == 1.0
    assert levels[127] == 0.0
    torch.testing.assert_close(levels[254].item(), 1 - 0.9 / 128, rtol=0, atol=1e-7)
    torch.testing.assert_close(levels[128].item(), 0.55e-6, rtol=1e-6, atol=0)
    torch.testing.assert_close(levels[0].item(), -(1 - 0.9 / 128), rtol=0, atol=1e-7)


def by_brute_force(weight: torch.Tensor) -> np.ndarray:
    """The round trip, weight by weight, in float64."""
    flat = weight.double().numpy().reshape(-1)
    starts = range(0, len(flat), BLOCK)
    largest = np.array([np.abs(flat[i : i + BLOCK]).max() for i in starts])
    away, table = largest - largest.mean(), magnitude_levels(CPU).double().numpy()
    coarse = np.empty_like(largest)
    for i in range(0, len(away), GROUP):
        scale = np.abs(away[i : i + GROUP]).max() or 1.0
        for j, value in enumerate(away[i : i + GROUP]):
            coarse[i + j] = table[np.abs(table - value / scale).argmin()] * scale + largest.mean()
    found = [
        LEVELS[np.abs(np.array(LEVELS) - value / (largest[i // BLOCK] or 1.0)).argmin()] * coarse[i // BLOCK]
        for i, value in enumerate(flat)
    ]
    return np.array(found).reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_round_trip_is_that_of_brute_force(shape: tuple[int, int]) -> None:
    weight = weights(shape)
    np.testing.assert_allclose(round_trip(weight).numpy(), by_brute_force(weight), rtol=1e-5, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 200), st.sampled_from([1e-6, 0.02, 3.0, 1e4]), st.integers(0, 1 << 20)
)
def test_properties_of_the_round_trip(rows: int, columns: int, size: float, seed: int) -> None:
    """Shape and storage; no sign turns; an error is at most half of the widest gap between levels, and that of the
    magnitude; a weight of 0 stays 0."""
    weight = weights((rows, columns), seed) * size
    weight[0, 0] = 0.0
    held = quantize(weight)
    again = dequantize(held)
    assert again.shape == weight.shape
    count = weight.numel()
    blocks = -(-count // BLOCK)
    assert held.nbytes == -(-count // 2) + blocks + 4 * -(-blocks // GROUP) + 4
    largest = torch.nn.functional.pad(weight.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK).abs().amax(1)
    spread = (largest - largest.mean()).abs().max()
    slack = (0.1520 * largest + 0.0072 * spread).repeat_interleave(BLOCK)[:count].view_as(weight)
    assert ((again - weight).abs() <= slack + 1e-6 * size).all()
    assert (again * weight >= 0).all()
    assert again[0, 0] == 0.0


def test_a_weight_of_zeros_stays_so_and_dtypes_are_rounded_once() -> None:
    assert torch.equal(round_trip(torch.zeros(3, 70)), torch.zeros(3, 70))
    weight = weights((40, 64), dtype=torch.bfloat16)
    held = quantize(weight)
    assert torch.equal(dequantize(held, torch.bfloat16), dequantize(held).bfloat16())
    assert torch.equal(round_trip(weight), round_trip(weight.float()))


def bitsandbytes() -> Any:
    import bitsandbytes.functional

    return bitsandbytes.functional


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 64), (576, 1536), (192, 576)])
def test_against_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The same codes and scales; from its own codes, the same weights bit for bit.

    Its CPU code takes a neighbour of the nearest 8-bit level for some magnitudes.
    """
    weight = weights(shape, dtype=dtype)
    codes, state = bitsandbytes().quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    held = quantize(weight)
    assert torch.equal(held.codes, codes.reshape(-1))
    assert torch.equal(held.scales, state.state2.absmax)
    assert torch.equal(held.mean, state.offset)
    assert torch.equal(magnitude_levels(CPU), state.state2.code)
    apart = (held.magnitudes.int() - state.absmax.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.02
    its = nf4.Quantized(codes.reshape(-1), state.absmax, state.state2.absmax, state.offset, shape)
    theirs = bitsandbytes().dequantize_4bit(codes, state)
    assert torch.equal(dequantize(its, dtype), theirs)


def test_the_codes_that_bitsandbytes_gave() -> None:
    """What bitsandbytes 0.50.2 gave for 192 numbers, multiples of 1/512, which any machine has exactly."""
    weight = torch.tensor([[((37 * i * i + 11 * i) % 255 - 127) / 128 / 2 ** (i // 64) for i in range(192)]])
    held = quantize(weight)
    assert bytes(held.codes.tolist()).hex() == _CODES
    assert held.magnitudes.tolist() == [255, 56, 14]
