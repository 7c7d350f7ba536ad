"""A linear layer of a running vLLM model: writes its weight in place, and proves which weight it computes with.

On a GPU a layer computes with `layer.weight`. On a CPU vLLM packs the weight at load and leaves `layer.weight` empty.
What `layer.cpu_linear` then holds, and how it is rewritten:

    kernel              holds in its closure            rewritten by
    oneDNN matmul       handler (address in a tensor)   pointing that tensor at a newly packed handler
    AMX small matmul    packed_weight                   packing again, copying over it
    plain matmul        nothing, reads layer.weight     copying over it

All three keep the identity of the tensors that a compiled graph has captured, so compiled engines see the new weight
too. vLLM is never imported: its kernels are called through `torch.ops._C`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlpost.errors import SwapError

_PRIMITIVES_KEPT = 32  # number of matmul shapes that a oneDNN handler remembers, as vLLM sets it
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}  # see Probe


class LiveLayer:
    """An unquantized vLLM linear layer or head, weight [out, in] in the engine's dtype (of a shard: its own)."""

    def __init__(self, name: str, layer: Any):
        self.name = name
        self.layer = layer
        self.shape = (_size(layer, "output_size"), _size(layer, "input_size"))
        self.dtype: torch.dtype = layer.params_dtype
        self.device: torch.device = layer.weight.device

    def check(self) -> None:
        """Raises SwapError for a CPU kernel that this version does not know."""
        held = self._held()
        if not {"handler", "packed_weight"} & held.keys() and self.layer.weight.shape != self.shape:
            raise SwapError(
                f"{self.name}: unknown packed kernel (it holds {sorted(held)}); no way to rewrite it."
            )

    def write(self, weight: Tensor) -> None:
        """Make the layer compute with `weight` [out, in]. Raises SwapError for a wrong shape or dtype."""
        if weight.shape != self.shape or weight.dtype != self.dtype:
            raise SwapError(
                f"{self.name}: cannot write {tuple(weight.shape)} {weight.dtype} over {self.shape} {self.dtype}."
            )
        held = self._held()
        if "handler" in held:
            _replace_handler(held["handler"], weight)
        elif "packed_weight" in held:
            held["packed_weight"].copy_(torch.ops._C.convert_weight_packed(weight))
        else:
            self.layer.weight.data.copy_(weight)

    def _held(self) -> dict[str, Any]:
        """What the layer's CPU kernel has packed; empty on a GPU."""
        return _closure(self.layer.cpu_linear) if hasattr(self.layer, "cpu_linear") else {}

    def forward(self, inputs: Tensor) -> Tensor:
        """What the running engine computes for inputs [n, in], without bias: [n, out]."""
        return self.layer.quant_method.apply(self.layer, inputs, None)


@dataclass(frozen=True)
class Questions:
    """Inputs that reveal which weight a layer holds.

    The first rows are one-hot and read single columns without rounding: their outputs must be equal bit for bit. The
    last row has random signs, +1 and -1, and tests every weight, up to rounding.
    """

    columns: Tensor  # [count] the columns that are read
    inputs: Tensor  # [count + 1, in], fp32

    @classmethod
    def random(cls, width: int, count: int, dice: torch.Generator, device: torch.device) -> Questions:
        columns = torch.randperm(width, generator=dice)[:count]
        inputs = torch.zeros(len(columns) + 1, width)
        inputs[torch.arange(len(columns)), columns] = 1.0
        inputs[-1] = torch.randint(0, 2, (width,), generator=dice) * 2.0 - 1.0
        return cls(columns.to(device), inputs.to(device))


@dataclass(frozen=True)
class Probe:
    """Questions to a layer and their answers, to be checked through its own kernel after all writing is done.

    The answers to random signs may differ by _TOLERANCE times their size: the largest of them, or the largest norm of a
    row of the weight, estimated from the columns that are read. A layer with few outputs needs the norm, since all its
    answers may be near 0, and rounding is not.
    """

    layer: LiveLayer
    inputs: Tensor  # [count + 1, in]
    expected: Tensor  # [count + 1, out]

    @property
    def name(self) -> str:
        return self.layer.name

    @classmethod
    def of(cls, layer: LiveLayer, weight: Tensor, exact: Tensor, questions: Questions) -> Probe:
        """`weight` [out, in] is what was written, `exact` the same in fp32 before rounding."""
        mixed = (exact @ questions.inputs[-1]).to(weight.dtype)
        expected = torch.cat([weight.index_select(1, questions.columns).T, mixed.unsqueeze(0)])
        return cls(layer, questions.inputs.to(weight.dtype), expected)

    def holds(self) -> bool:
        computed = self.layer.forward(self.inputs)
        if not torch.equal(computed[:-1], self.expected[:-1]):
            return False
        expected = self.expected.float()
        read, width = len(expected) - 1, self.inputs.shape[1]
        size = torch.maximum(
            expected[-1].abs().max(), math.sqrt(width / read) * expected[:-1].norm(dim=0).max()
        )
        off = (computed[-1].float() - expected[-1]).abs().max()
        return bool(off <= _TOLERANCE[self.layer.dtype] * size)


def _size(layer: Any, name: str) -> int:
    """vLLM's replicated layers, such as the router of a mixture of experts, have no size per partition."""
    per_partition = f"{name}_per_partition"
    size: int = getattr(layer, per_partition if hasattr(layer, per_partition) else name)
    return size


def _closure(function: Any) -> dict[str, Any]:
    cells = function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, cells, strict=True)}


def _replace_handler(handler: Any, weight: Tensor) -> None:
    """Point a vLLM `CPUDNNLGEMMHandler` at a newly packed weight and free the old one."""
    old = int(handler.handler_tensor.item())
    handler.handler_tensor.fill_(torch.ops._C.create_onednn_mm_handler(weight.t(), _PRIMITIVES_KEPT))
    torch.ops._C.release_dnnl_matmul_handler(old)
