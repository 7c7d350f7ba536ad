"""Writes weights into a running vLLM model: merge, write in place, prove.

    1 find the live tensors of every parameter  else refuse, nothing touched
    2 W = round(W0 + delta), one tensor after another, written in place; a fused layer's modules are stacked
    3 prove every written tensor                else report which do not hold W

Each merge starts from the checkpoint's own W0 (memory-mapped, no second copy), so errors do not accumulate, and writing
W0 restores the base model bit for bit. Tensors that an earlier update wrote and the next one does not name return to
W0. Before a tensor is written for the first time, it is compared with W0: whatever this file and vLLM's loader do not
lay out alike is refused by name. This file never imports vllm.

A rank of a tensor-parallel engine merges whole parameters and writes its own shard (rlpost/rollout/engine/shards.py),
so each proof is of that rank's tensors alone, and every rank must give its own.

vLLM's own loader (`reload_weights`) could implement the same protocol. But it takes longer without a proof than this
writer with one, and an update that names only one module of a fused layer leaves the others without values
(docs/results/decoding-and-swap.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rlpost.errors import SwapError
from rlpost.rollout.engine.live_layer import LiveLayer, Probe, Questions
from rlpost.rollout.engine.live_parameter import ReadBack
from rlpost.rollout.engine.targets import Target, targets
from rlpost.rollout.engine.weight_writer import WriteReport
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import WeightUpdate

PROBE_COLUMNS = 16  # columns of each written layer that are read back bit for bit
_SAMPLED = 8  # one row in so many of a matrix is measured for the rounding loss


class InPlaceWriter:
    """A `rlpost.rollout.engine.weight_writer.WeightWriter` for unquantized models, and one rank's shard of such."""

    def __init__(self, model: nn.Module, base: BaseWeights):
        self._base = base
        self._targets = {part.parameter: target for target in targets(model, base) for part in target.parts}
        self._as_stored: set[str] = set()  # names of the targets that were seen to hold the base
        self._written: dict[str, Target] = {}  # targets that may not hold the base, by name
        self._scratch: dict[tuple[str, torch.dtype], Tensor] = {}

    def write(self, update: WeightUpdate | None) -> WriteReport:
        """See `WeightWriter.write`."""
        named = () if update is None else tuple(update.shapes)
        if update is not None:
            self._check_names(update)
        changed = {target.name: target for target in (self._targets[name] for name in named)}
        self._check_layout(changed.values())
        merge = _Merge(update)
        wanted = changed | self._written
        proofs = [proof for target in wanted.values() for proof in self._write(target, merge)]
        broken = [proof.name for proof in proofs if not proof.holds()]
        if broken or merge.bound != len(named):
            raise SwapError(
                f"{len(broken)} of {len(proofs)} layers do not compute with what was written ({_some(broken)});"
                f" {merge.bound} of {len(named)} parameters were merged."
            )
        self._written = changed
        arrived = "" if update is None else update.fingerprint
        return WriteReport(arrived, merge.bound, len(named), merge.rounding_loss)

    def set_base(self, base: BaseWeights) -> WriteReport:
        """See `WeightWriter.set_base`."""
        names = [f"{module}.weight" for module in base.changed]
        if absent := [name for name in names if name not in self._targets]:
            raise SwapError(
                f"lora.base={base.kind.value} changes {len(absent)} weights that have no place in the engine:"
                f" {_some(absent)}. Give lora.base=stored, or another model."
            )
        changed = {target.name: target for target in (self._targets[name] for name in names)}
        self._check_layout(changed.values())
        self._base = base
        self._written |= changed
        return self.write(None)

    def _check_names(self, update: WeightUpdate) -> None:
        shapes = update.shapes
        unknown = [name for name in shapes if name not in self._targets]
        if unknown:
            raise SwapError(
                f"{len(unknown)} of {len(shapes)} changed parameters have no place in the engine:"
                f" {_some(unknown)}. Target the engine's own model, and only what it holds unquantized. (A tied head"
                " follows the embeddings.)"
            )
        for name, shape in shapes.items():
            if self._base.shape(name) != shape:
                raise SwapError(
                    f"{name!r}: the update's value {shape} and the base's {self._base.shape(name)} do not fit."
                    " Is the adapter of another model?"
                )

    def _check_layout(self, wanted: Iterable[Target]) -> None:
        """Raises SwapError for a tensor that cannot be rewritten, or does not hold the checkpoint's values as expected.

        Each is looked at once, before it is first written.
        """
        new = [target for target in wanted if target.name not in self._as_stored]
        for target in new:
            for live in target.live:
                live.check()
        stored = _Merge(None)
        proofs = [
            proof for target in new for proof in self._prove(target, *self._value(target, stored), stored)
        ]
        unlike = [proof.name for proof in proofs if not proof.holds()]
        if unlike:
            raise SwapError(
                f"{len(unlike)} of {len(proofs)} layers do not hold the checkpoint's values where they are expected"
                f" ({_some(unlike)}): vLLM lays them out in a way that this version does not know. Leave them out."
            )
        self._as_stored.update(target.name for target in new)

    def _write(self, target: Target, merge: _Merge) -> list[Probe | ReadBack]:
        self._written[target.name] = target
        value, exact = self._value(target, merge)
        for live in target.live:
            live.write(value)
        return self._prove(target, value, exact, merge)

    def _prove(self, target: Target, value: Tensor, exact: Tensor, merge: _Merge) -> list[Probe | ReadBack]:
        return [
            Probe.of(live, value, exact, merge.questions(live))
            if isinstance(live, LiveLayer)
            else live.proof(value)
            for live in target.live
        ]

    def _value(self, target: Target, merge: _Merge) -> tuple[Tensor, Tensor]:
        """What the target's live tensors must hold, in the engine's dtype, and the same in fp32 before rounding.

        Both are buffers that all targets share: new memory for each would cost more than the merge.
        """
        live = target.live[0]
        exact, row = self._buffer("exact", live.shape, torch.float32, live.device), 0
        for part in target.parts:
            base = self._base[part.parameter]
            # The base as the engine holds it. Widened to fp32 it already is that, and needs no copy.
            if live.dtype != torch.float32:
                base = base.to(live.device, live.dtype)
            if part.is_whole:
                merge.into(exact[row : row + base.shape[0]], part.parameter, base, live.dtype)
                row += base.shape[0]
                continue
            whole = self._buffer("whole", tuple(base.shape), torch.float32, live.device)
            merge.into(whole, part.parameter, base, live.dtype)
            for piece in part.pieces(whole):
                exact[row : row + piece.shape[0]].copy_(piece)
                row += piece.shape[0]
        exact[row:].zero_()
        if live.dtype == torch.float32:
            return exact, exact
        return self._buffer("value", live.shape, live.dtype, live.device).copy_(exact), exact

    def _buffer(self, use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = math.prod(shape)
        if (use, dtype) not in self._scratch or self._scratch[use, dtype].numel() < size:
            self._scratch[use, dtype] = torch.empty(size, dtype=dtype, device=device)
        return self._scratch[use, dtype][:size].view(shape)


class _Merge:
    """The merge of one update: its deltas, the rounding loss so far, and the questions to ask afterwards."""

    def __init__(self, update: WeightUpdate | None):
        self._update = update
        self._dice = torch.Generator().manual_seed(0 if update is None else update.version)
        self._questions: dict[tuple[int, torch.device], Questions] = {}
        self._lost = 0.0
        self._delta = 0.0
        self.bound = 0  # number of merged parameters

    def into(self, value: Tensor, parameter: str, base: Tensor, dtype: torch.dtype) -> None:
        """Fill fp32 `value` with the parameter's new one. `base` is W0 as the engine holds it, or widened to fp32.

        `dtype` is the engine's.
        """
        if self._update is None or parameter not in self._update.shapes:
            value.copy_(base)
            return
        self._update.merged(parameter, base, value)
        self.bound += 1
        if dtype != torch.float32:
            step = _SAMPLED if value.ndim > 1 else 1
            sample = value[::step]
            # A sampled row stands for those that are not looked at.
            self._lost += step * _square(sample.to(dtype).float() - sample)
            self._delta += step * _square(sample - base[::step].float())

    @property
    def rounding_loss(self) -> float:
        """||round(W) - W|| / ||W - W0||, W = W0 + D in fp32, over all merged parameters; 0 in an fp32 engine.

        Of a matrix it is estimated from every eighth row, since over all rows it would cost as much as the merge.
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


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
