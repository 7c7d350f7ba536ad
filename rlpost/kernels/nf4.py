"""NF4 with double quantization (QLoRA, arXiv 2305.14314, section 3): about 4.13 bits a weight.

    64 weights   ─▶ the nearest of 16 levels, as a share of the block's largest magnitude    4 bits a weight
    256 blocks   ─▶ their magnitudes, less the mean of all, in 8 bits                        8 bits a block
                 ─▶ the largest of those 256, and the mean                                   fp32

The format is that of bitsandbytes (`quantize_4bit` with `quant_type="nf4"` and `compress_statistics=True`), whose CPU
code takes a neighbour of the nearest 8-bit level for a few blocks in a thousand. Blocks run over the weight's rows, one
after another, and may cross them. Everything is computed in fp32.

Shapes: n weights, b = ceil(n / 64) blocks, c = ceil(b / 256) groups of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BLOCK = 64  # weights that share a magnitude
GROUP = 256  # blocks whose magnitudes share a scale

# Appendix E of the paper. Section 3 constructs them: quantiles of N(0, 1) at evenly spaced probabilities, eight from
# d = (1/32 + 1/30) / 2 up to 1/2 and nine from there to 1 - d, divided by the largest. 0 and both ends are exact.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Quantized:
    """A weight in NF4."""

    codes: Tensor  # (ceil(n / 2),) uint8: two weights a byte, the first in the upper half
    magnitudes: Tensor  # (b,) uint8: indices of `magnitude_levels`
    scales: Tensor  # (c,) fp32: the largest difference to the mean of each group of blocks
    mean: Tensor  # () fp32: of all blocks' magnitudes
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(
            t.numel() * t.element_size() for t in (self.codes, self.magnitudes, self.scales, self.mean)
        )


def quantize(weight: Tensor) -> Quantized:
    """`weight`, of any shape and float dtype, in NF4. Its values must be finite."""
    blocks = _in_rows(weight.detach().float().reshape(-1), BLOCK)
    magnitudes_b = blocks.abs().amax(dim=1)
    shares = blocks / magnitudes_b.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = _nearest(shares, _levels(weight.device)).reshape(-1)[: weight.numel()]
    pairs = _in_rows(codes, 2)
    mean = magnitudes_b.mean()
    groups = _in_rows(magnitudes_b - mean, GROUP)
    scales_c = groups.abs().amax(dim=1)
    shares = groups / scales_c.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    places = _nearest(shares, magnitude_levels(weight.device)).reshape(-1)[: len(magnitudes_b)]
    return Quantized(pairs[:, 0] << 4 | pairs[:, 1], places, scales_c, mean, tuple(weight.shape))


def dequantize(weight: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that `weight` stands for: a level times its block's magnitude, rounded once from fp32 to `dtype`."""
    device = weight.codes.device
    # One look-up a byte. int64 holds two levels, which are copied, not computed with.
    flat = torch.index_select(_level_pairs(device), 0, weight.codes.int()).view(torch.float32)
    levels = magnitude_levels(device)[weight.magnitudes.int()]
    magnitudes_b = (
        _in_rows(levels, GROUP).mul(weight.scales[:, None]).reshape(-1)[: len(levels)] + weight.mean
    )
    count = math.prod(weight.shape)
    values = _in_rows(flat[:count], BLOCK).mul(magnitudes_b[:, None]).reshape(-1)[:count]
    return values.to(dtype).view(weight.shape)


def round_trip(weight: Tensor) -> Tensor:
    """The nearest weight that NF4 has, in fp32."""
    return dequantize(quantize(weight))


@cache
def magnitude_levels(device: torch.device) -> Tensor:
    """The 256 levels of the second quantization, ascending: the signed dynamic 8-bit numbers of arXiv 2110.02861.

    Of 8 bits one is the sign. The zeros that follow it count the powers of ten below 1, and the bits left divide the
    decade from 0.1 to 1 of that power evenly, by the middles of its parts. 0 and 1 are levels of their own.
    """
    found = [0.0, 1.0]
    for bits in range(7):
        edges = torch.linspace(0.1, 1.0, 2**bits + 1, dtype=torch.float32)
        middles = 10.0 ** (bits - 6) * (edges[:-1] + edges[1:]) / 2.0
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found), dtype=torch.float32, device=device)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


@cache
def _level_pairs(device: torch.device) -> Tensor:
    """The two levels of every byte, their bits side by side: (256,) int64."""
    levels = _levels(device)
    return torch.cartesian_prod(levels, levels).contiguous().view(torch.int64).reshape(-1)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The index, as uint8, of the level nearest to each value. Between two levels the lower one is taken."""
    return torch.bucketize(values, (levels[:-1] + levels[1:]) / 2.0).to(torch.uint8)


def _in_rows(flat: Tensor, width: int) -> Tensor:
    """`flat` in rows of `width`, the last one filled up with zeros."""
    missing = -flat.numel() % width
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, width)
