"""The hot swap inside a vLLM worker: merge, write in place, prove.

    Adapter (learner)            vLLM worker (`SwapWorker`, mixed into its class)
    A, B, fingerprint  ────────▶ 1 fingerprint what arrived         else refuse, nothing touched
                                 2 find every module's live layer   else refuse, nothing touched
    base folder (mmap) ────────▶ 3 W = round(W0 + delta), one layer after another, written in place
                                 4 probe every written layer        else report which do not hold W
                                 ▼
                                 BindReport ──▶ VllmEngine.swap: prefix cache, canary, or restore

Each merge starts from the checkpoint's own W0 (memory-mapped, no second copy), so nothing drifts, and the
bare base is restored bit for bit by writing W0. Layers written earlier that the next adapter leaves alone
go back to W0 as well. This file never imports vllm; vLLM loads it by name as its worker extension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlpost.errors import SwapError
from rlpost.rollout.engine.live_layer import LiveLayer, Probe, Questions
from rlpost.weights.adapters import Adapter, fingerprint, merged_weight
from rlpost.weights.models import weight_files

WORKER_EXTENSION = "rlpost.rollout.engine.swap.SwapWorker"
PROBE_COLUMNS = 16  # columns of each written layer that are read back bit for bit
_SAMPLED = 8  # of so many rows one is measured for the rounding loss


@dataclass(frozen=True)
class BindReport:
    """What a worker can prove after writing. See `rlpost.rollout.engine.protocol.SwapReport`."""

    fingerprint: str  # of the tensors as they lie here, that were merged; empty for the bare base
    modules_bound: int
    modules_expected: int
    rounding_loss: float


class BaseWeights:
    """The untouched checkpoint of a model folder: parameters by name, memory-mapped, never written."""

    def __init__(self, folder: Path):
        self._tensors: dict[str, Tensor] = {}
        for path in weight_files(folder) or [folder / "model.safetensors"]:
            if not path.is_file():
                raise SwapError(f"{path} is missing; a swap needs the base weights as safetensors.")
            self._tensors.update(load_file(path))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


@dataclass(frozen=True)
class Target:
    """A live layer and the base model's modules whose rows are stacked in it, top to bottom."""

    layer: LiveLayer
    parts: tuple[str, ...]


class Merger:
    """Keeps a vLLM model's linear layers at `base + adapter`."""

    def __init__(self, model: nn.Module, base: BaseWeights):
        self._base = base
        self._targets = {part: target for target in _targets(model) for part in target.parts}
        self._written: set[str] = set()  # first parts of the layers that may not hold the base
        self._scratch: dict[torch.dtype, Tensor] = {}

    def bind(self, adapter: Adapter | None) -> BindReport:
        """Write `adapter` (None: the bare base) into the model and prove it.

        Raises:
            SwapError: the tensors are not those that were fingerprinted; a module has no live layer, no base
                weight or another shape (nothing is written then); a written layer does not compute with what
                was written (the layers are then mixed, and the caller must bind something else).
        """
        modules = () if adapter is None else adapter.modules
        arrived = ""
        if adapter is not None:
            arrived = _check_arrival(adapter)
            self._check_modules(adapter)
        wanted = dict.fromkeys([*(self._targets[m].parts[0] for m in modules), *sorted(self._written)])
        merge = _Merge(adapter)
        probes = [self._write(self._targets[first], merge) for first in wanted]
        broken = [probe.layer.name for probe in probes if not probe.holds()]
        if broken or merge.bound != len(modules):
            raise SwapError(
                f"{len(broken)} of {len(probes)} layers do not compute with what was written ({_some(broken)});"
                f" {merge.bound} of {len(modules)} modules were merged."
            )
        self._written = {self._targets[m].parts[0] for m in modules}
        return BindReport(arrived, merge.bound, len(modules), merge.rounding_loss)

    def _check_modules(self, adapter: Adapter) -> None:
        modules = adapter.modules
        unknown = [m for m in modules if m not in self._targets or f"{m}.weight" not in self._base]
        if unknown:
            raise SwapError(
                f"{len(unknown)} of {len(modules)} adapted modules have no linear layer in the engine:"
                f" {_some(unknown)}. Target the engine's own model; embeddings and the head cannot be swapped."
            )
        for module in modules:
            factors, base = adapter.factors(module), self._base[f"{module}.weight"]
            if base.shape != (factors.B.shape[0], factors.A.shape[1]):
                raise SwapError(
                    f"Module {module!r}: A {tuple(factors.A.shape)} and B {tuple(factors.B.shape)} do not fit"
                    f" the base weight {tuple(base.shape)}. Is the adapter of another model?"
                )

    def _write(self, target: Target, merge: _Merge) -> Probe:
        layer = target.layer
        self._written.add(target.parts[0])
        merged, weight = self._buffers(layer)
        row = 0
        for part in target.parts:
            base = self._base[f"{part}.weight"].to(layer.device, layer.dtype)
            merge.into(merged[row : row + base.shape[0]], part, base)
            row += base.shape[0]
        if weight is not merged:
            weight.copy_(merged)
        layer.write(weight)
        return Probe.of(layer, weight, merged, merge.questions(layer))

    def _buffers(self, layer: LiveLayer) -> tuple[Tensor, Tensor]:
        """The merge in fp32 and the same in the engine's dtype, [out, in] each, one memory for all layers:
        fresh memory for each would cost more than the merge."""
        merged = self._buffer(layer, torch.float32)
        return merged, merged if layer.dtype == torch.float32 else self._buffer(layer, layer.dtype)

    def _buffer(self, layer: LiveLayer, dtype: torch.dtype) -> Tensor:
        size = layer.shape[0] * layer.shape[1]
        if dtype not in self._scratch or self._scratch[dtype].numel() < size:
            self._scratch[dtype] = torch.empty(size, dtype=dtype, device=layer.device)
        return self._scratch[dtype][:size].view(layer.shape)


class _Merge:
    """One bind's merging: what goes in, what was lost to rounding, and the questions asked afterwards."""

    def __init__(self, adapter: Adapter | None):
        self._adapter = adapter
        self._adapted = frozenset() if adapter is None else frozenset(adapter.modules)
        self._dice = torch.Generator().manual_seed(0 if adapter is None else adapter.version)
        self._questions: dict[tuple[int, torch.device], Questions] = {}
        self._lost = 0.0
        self._delta = 0.0
        self.bound = 0  # modules merged

    def into(self, rows: Tensor, module: str, base: Tensor) -> None:
        """Fill fp32 `rows` [out, in] with the module's weight; `base` is W0 in the engine's dtype."""
        if self._adapter is None or module not in self._adapted:
            rows.copy_(base)
            return
        merged_weight(self._adapter, module, base, out=rows)
        self.bound += 1
        if base.dtype != torch.float32:
            sample = rows[::_SAMPLED]
            self._lost += _square(sample.to(base.dtype).float() - sample)
            self._delta += _square(sample - base[::_SAMPLED].float())

    @property
    def rounding_loss(self) -> float:
        """||round(W) - W|| / ||W - W0||, W = W0 + D in fp32, over all merged modules; 0 in an fp32 engine.
        Estimated from every eighth row, since over all rows it would cost as much as the merge."""
        return math.sqrt(self._lost / self._delta) if self._delta > 0 else 0.0

    def questions(self, layer: LiveLayer) -> Questions:
        """New ones in each bind, shared by layers of one width."""
        key = (layer.shape[1], layer.device)
        if key not in self._questions:
            self._questions[key] = Questions.random(layer.shape[1], PROBE_COLUMNS, self._dice, layer.device)
        return self._questions[key]


def _square(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return float(flat @ flat)


def _targets(model: Any) -> Iterator[Target]:
    """Every unquantized linear layer of a vLLM model, with the checkpoint's names of what is stacked in it."""
    fused = model.packed_modules_mapping if hasattr(model, "packed_modules_mapping") else {}
    for name, layer in model.named_modules():
        method = layer.quant_method if hasattr(layer, "quant_method") else None
        if type(method).__name__ != "UnquantizedLinearMethod":
            continue
        parent, _, leaf = name.rpartition(".")
        parts = tuple(f"{parent}.{part}" for part in fused[leaf]) if leaf in fused else (name,)
        yield Target(LiveLayer(name, layer), parts)


def _check_arrival(adapter: Adapter) -> str:
    arrived = fingerprint(adapter.tensors)
    if arrived != adapter.fingerprint:
        raise SwapError(
            f"Adapter version {adapter.version} did not arrive whole: fingerprint {arrived[:12]} here,"
            f" {adapter.fingerprint[:12]} at the learner."
        )
    return arrived


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class SwapWorker:
    """vLLM mixes this into its worker class; `collective_rpc` reaches its methods by name."""

    def rlpost_bind(self, adapter: Adapter | None) -> BindReport:
        """See `Merger.bind`."""
        return self._rlpost_merger().bind(adapter)

    def _rlpost_merger(self) -> Merger:
        worker: Any = self
        if not hasattr(worker, "_rlpost_merger_"):
            if worker.parallel_config.world_size != 1:
                raise SwapError(
                    "Merged swaps need an engine on one device (tensor and pipeline parallel size 1)."
                )
            base = BaseWeights(Path(worker.model_config.model))
            worker._rlpost_merger_ = Merger(worker.model_runner.get_model(), base)
        merger: Merger = worker._rlpost_merger_
        return merger
