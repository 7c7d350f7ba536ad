"""A weight update: the new values of some of the checkpoint's parameters in an engine.

    Adapter ─▶ weight_update(adapter, base) ─▶ WeightUpdate ─▶ a writer of the engine (rlpost.rollout.engine)
               merged_weight, for LoRA of one rank
               the tensors themselves, for full fine-tuning
               PEFT's own layers, for everything else (rlpost.weights.peft_merge)

Any parameter may change: weights and biases of linear layers, norms, embeddings, the head. A writer asks for one
parameter after another, in the order that suits it and into its own memory, so no second copy of the model is made.
Writers know no kinds of adapters, and adapters know no engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rlpost.config.adapter_kinds import FULL
from rlpost.errors import AdapterError
from rlpost.weights.adapters import Adapter, fingerprint, merged_weight
from rlpost.weights.base_weights import BaseWeights

_SHOWN = 3  # tensors shown in a message

# (parameter, its W0, fp32 buffer of the same shape or None) -> the merged value in fp32.
Merge = Callable[[str, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class WeightUpdate:
    """One version of some parameters. A value is computed only when it is asked for.

    Iterating gives (name in the checkpoint, value in fp32), merged over the stored W0, one parameter at a time.
    """

    version: int
    fingerprint: str  # SHA-256 over the tensors to be merged, as held in memory
    shapes: Mapping[str, tuple[int, ...]]  # by the parameter's name in the checkpoint
    base: BaseWeights
    _merge: Merge = field(repr=False)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for parameter in self.shapes:
            yield parameter, self.merged(parameter, self.base[parameter])

    def merged(self, parameter: str, base: Tensor, out: Tensor | None = None) -> Tensor:
        """The new value of `parameter` over `base`, which is the caller's W0 (any float dtype).

        Returns fp32 of the base's shape, in `out` if given. Raises AdapterError if it cannot be merged.
        """
        return self._merge(parameter, base, out)


def weight_update(adapter: Adapter, base: BaseWeights) -> WeightUpdate:
    """The weight update of `adapter` on `base`.

    Raises:
        AdapterError: the adapter's tensors differ from their fingerprint, it was trained on another kind of base, PEFT
            cannot build its layers on the linear layers of `base`, or a whole tensor has no parameter of its name and
            shape in `base`.
    """
    arrived = fingerprint(adapter.tensors)
    if arrived != adapter.fingerprint:
        raise AdapterError(
            f"Adapter version {adapter.version} did not arrive whole: fingerprint {arrived[:12]} here,"
            f" {adapter.fingerprint[:12]} where it was made."
        )
    if adapter.base not in (None, base.kind):
        raise AdapterError(
            f"The adapter was trained on lora.base={adapter.base.value}, and here the base is {base.kind.value}, with"
            f" which it gives another policy. Give lora.base={adapter.base.value}."
        )
    if adapter.has_formula:
        weights = {f"{module}.weight": adapter.shape(module) for module in adapter.modules}
        return WeightUpdate(adapter.version, arrived, weights, base, partial(_merged_lora, adapter))
    if adapter.config["peft_type"] == FULL:
        _check_whole(adapter, base)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
        return WeightUpdate(adapter.version, arrived, shapes, base, partial(_whole, adapter.tensors))
    from rlpost.weights.peft_merge import PeftLayers  # its import takes seconds, and few runs need it

    layers = PeftLayers(adapter.config, adapter.tensors, base)
    return WeightUpdate(adapter.version, arrived, layers.shapes, base, layers.merged)


def check_merges(update: WeightUpdate) -> None:
    """Merge one parameter of each kind (q_proj.weight, q_proj.bias, ...), to find a failing merge before a swap.

    Raises AdapterError like `WeightUpdate.merged`.
    """
    for parameter in {tuple(name.split(".")[-2:]): name for name in update.shapes}.values():
        merged = update.merged(parameter, update.base[parameter])
        if not torch.isfinite(merged).all():
            raise AdapterError(f"{parameter!r}: the merged value has entries that are NaN or infinite.")


def _merged_lora(adapter: Adapter, parameter: str, base: Tensor, out: Tensor | None = None) -> Tensor:
    return merged_weight(adapter, parameter.removesuffix(".weight"), base, out)


def _whole(tensors: Mapping[str, Tensor], parameter: str, base: Tensor, out: Tensor | None = None) -> Tensor:
    """The tensor itself, whatever the base holds."""
    out = torch.empty(base.shape, dtype=torch.float32, device=base.device) if out is None else out
    return out.copy_(tensors[parameter])


def _check_whole(adapter: Adapter, base: BaseWeights) -> None:
    wrong = [
        f"{name} is {tuple(tensor.shape)} there and"
        f" {tuple(base[name].shape) if name in base else 'absent'} in the model"
        for name, tensor in adapter.tensors.items()
        if name not in base or base[name].shape != tensor.shape
    ]
    if wrong:
        raise AdapterError(
            f"{len(wrong)} of {len(adapter.tensors)} whole tensors fit no parameter of the checkpoint:"
            f" {'; '.join(wrong[:_SHOWN])}. Are they of another model? (A tied head has no tensor of its own.)"
        )
