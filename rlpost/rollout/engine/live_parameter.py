"""A parameter that a running vLLM model reads directly: norms, biases, the table of embeddings.

It is written in place, so a compiled graph that has captured it sees the new value, and it is read back bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class LiveParameter:
    """A parameter whose values have the engine's `dtype`. Its tensor may be wider: AMX kernels take biases in fp32."""

    def __init__(self, name: str, parameter: nn.Parameter, dtype: torch.dtype):
        self.name, self.dtype = name, dtype
        self._parameter = parameter
        self.shape = tuple(parameter.shape)
        self.device: torch.device = parameter.device

    def check(self) -> None:
        """Every parameter can be written."""

    def write(self, value: Tensor) -> None:
        self._parameter.data.copy_(value)

    def proof(self, value: Tensor) -> ReadBack:
        """Read the parameter now: the buffer of `value` is used again for the next one."""
        expected = value.to(self._parameter.dtype)
        held = torch.equal(_bits(self._parameter.data), _bits(expected))
        return ReadBack(self.name, held)


@dataclass(frozen=True)
class ReadBack:
    name: str
    held: bool

    def holds(self) -> bool:
        return self.held


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
