"""Writes weights into a running vLLM model: merge, write in place, prove.

    1 find the live layer of every module  else refuse, nothing touched
    2 W = round(W0 + delta), one layer after another, written in place; a fused layer's modules are stacked
    3 probe every written layer            else report which do not hold W

Each merge starts from the checkpoint's own W0 (memory-mapped, no second copy), so errors do not accumulate, and writing
W0 restores the base model bit for bit. Layers that an earlier update wrote and the next one does not name return to W0.
This file never imports vllm.

vLLM's own loader (`reload_weights`) could implement the same protocol, and would handle the shards of an engine on
several devices. But it takes longer without a proof than this writer with one, and an update that names only one module
of a fused layer leaves the others without values (docs/results/decoding-and-swap.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlpost.errors import SwapError
from rlpost.rollout.engine.live_layer import LiveLayer, Probe, Questions
from rlpost.rollout.engine.weight_writer import WriteReport
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import WeightUpdate

PROBE_COLUMNS = 16  # columns of each written layer that are read back bit for bit
_SAMPLED = 8  # one row in so many is measured for the rounding loss


@dataclass(frozen=True)
class Target:
    """A live layer, and the base model's modules whose rows are stacked in it, top to bottom."""

    layer: LiveLayer
    parts: tuple[str, ...]


class InPlaceWriter:
    """A `rlpost.rollout.engine.weight_writer.WeightWriter` for unquantized linear layers on one device."""

    def __init__(self, model: nn.Module, base: BaseWeights):
        self._base = base
        self._targets = {part: target for target in _targets(model) for part in target.parts}
        if absent := [module for module in base.changed if module not in self._targets]:
            raise SwapError(
                f"lora.base={base.kind.value} changes {len(absent)} modules that are no linear layers in the engine:"
                f" {_some(absent)}. Give lora.base=stored, or another model."
            )
        # First module names of the layers that may not contain the base: the engine loads the checkpoint.
        self._written = {self._targets[module].parts[0] for module in base.changed}
        self._scratch: dict[torch.dtype, Tensor] = {}

    def write(self, update: WeightUpdate | None) -> WriteReport:
        """See `WeightWriter.write`."""
        if update is not None:
            self._check_modules(update)
        modules = () if update is None else tuple(update.shapes)
        wanted = dict.fromkeys([*(self._targets[m].parts[0] for m in modules), *sorted(self._written)])
        merge = _Merge(update)
        probes = [self._write(self._targets[first], merge) for first in wanted]
        broken = [probe.layer.name for probe in probes if not probe.holds()]
        if broken or merge.bound != len(modules):
            raise SwapError(
                f"{len(broken)} of {len(probes)} layers do not compute with what was written ({_some(broken)});"
                f" {merge.bound} of {len(modules)} modules were merged."
            )
        self._written = {self._targets[m].parts[0] for m in modules}
        arrived = "" if update is None else update.fingerprint
        return WriteReport(arrived, merge.bound, len(modules), merge.rounding_loss)

    def _check_modules(self, update: WeightUpdate) -> None:
        shapes = update.shapes
        unknown = [m for m in shapes if m not in self._targets or f"{m}.weight" not in self._base]
        if unknown:
            raise SwapError(
                f"{len(unknown)} of {len(shapes)} adapted modules have no linear layer in the engine:"
                f" {_some(unknown)}. Target the engine's own model; embeddings and the head cannot be swapped."
            )
        for module, shape in shapes.items():
            base = self._base[f"{module}.weight"]
            if base.shape != shape:
                raise SwapError(
                    f"Module {module!r}: the update's weight {shape} and the base's {tuple(base.shape)} do not fit."
                    " Is the adapter of another model?"
                )

    def _write(self, target: Target, merge: _Merge) -> Probe:
        layer = target.layer
        self._written.add(target.parts[0])
        merged, weight = self._buffers(layer)
        row = 0
        for part in target.parts:
            base = self._base[f"{part}.weight"]
            # The base as the engine holds it. Widened to fp32 it already is that, and needs no copy.
            if layer.dtype != torch.float32:
                base = base.to(layer.device, layer.dtype)
            merge.into(merged[row : row + base.shape[0]], part, base, layer.dtype)
            row += base.shape[0]
        if weight is not merged:
            weight.copy_(merged)
        layer.write(weight)
        return Probe.of(layer, weight, merged, merge.questions(layer))

    def _buffers(self, layer: LiveLayer) -> tuple[Tensor, Tensor]:
        """Buffers for the merge in fp32 and in the engine's dtype, [out, in] each.

        All layers share their memory: new memory for each would cost more than the merge.
        """
        merged = self._buffer(layer, torch.float32)
        return merged, merged if layer.dtype == torch.float32 else self._buffer(layer, layer.dtype)

    def _buffer(self, layer: LiveLayer, dtype: torch.dtype) -> Tensor:
        size = layer.shape[0] * layer.shape[1]
        if dtype not in self._scratch or self._scratch[dtype].numel() < size:
            self._scratch[dtype] = torch.empty(size, dtype=dtype, device=layer.device)
        return self._scratch[dtype][:size].view(layer.shape)


class _Merge:
    """The merge of one update: its deltas, the rounding loss so far, and the questions to ask afterwards."""

    def __init__(self, update: WeightUpdate | None):
        self._update = update
        self._dice = torch.Generator().manual_seed(0 if update is None else update.version)
        self._questions: dict[tuple[int, torch.device], Questions] = {}
        self._lost = 0.0
        self._delta = 0.0
        self.bound = 0  # number of merged modules

    def into(self, rows: Tensor, module: str, base: Tensor, dtype: torch.dtype) -> None:
        """Fill fp32 `rows` [out, in] with the module's weight. `base` is W0 as the engine holds it, or widened to fp32.

        `dtype` is the engine's.
        """
        if self._update is None or module not in self._update.shapes:
            rows.copy_(base)
            return
        self._update.merged(module, base, rows)
        self.bound += 1
        if dtype != torch.float32:
            sample = rows[::_SAMPLED]
            self._lost += _square(sample.to(dtype).float() - sample)
            self._delta += _square(sample - base[::_SAMPLED].float())

    @property
    def rounding_loss(self) -> float:
        """||round(W) - W|| / ||W - W0||, W = W0 + D in fp32, over all merged modules; 0 in an fp32 engine.

        It is estimated from every eighth row, since over all rows it would cost as much as the merge.
        """
        return math.sqrt(self._lost / self._delta) if self._delta > 0 else 0.0

    def questions(self, layer: LiveLayer) -> Questions:
        """New questions in each update, shared by layers of equal width."""
        key = (layer.shape[1], layer.device)
        if key not in self._questions:
            self._questions[key] = Questions.random(layer.shape[1], PROBE_COLUMNS, self._dice, layer.device)
        return self._questions[key]


def _square(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return float(flat @ flat)


def _targets(model: Any) -> Iterator[Target]:
    """Every unquantized linear layer of a vLLM model, with the checkpoint's names of the modules stacked in it."""
    fused = model.packed_modules_mapping if hasattr(model, "packed_modules_mapping") else {}
    for name, layer in model.named_modules():
        method = layer.quant_method if hasattr(layer, "quant_method") else None
        if type(method).__name__ != "UnquantizedLinearMethod":
            continue
        parent, _, leaf = name.rpartition(".")
        parts = tuple(f"{parent}.{part}" for part in fused[leaf]) if leaf in fused else (name,)
        yield Target(LiveLayer(name, layer), parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
