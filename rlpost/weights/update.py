"""A weight update: the new values of some of the checkpoint's weights in an engine.

    Adapter ─▶ weight_update(adapter, base) ─▶ WeightUpdate ─▶ a writer of the engine (rlpost.rollout.engine)
               merged_weight, for LoRA of one rank
               PEFT's own layers, for everything else (rlpost.weights.peft_merge)

A writer asks for one weight after another, in the order that suits it and into its own memory, so no second copy of the
model is made. Writers know no kinds of adapters, and adapters know no engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rlpost.errors import AdapterError
from rlpost.weights.adapters import Adapter, fingerprint, merged_weight
from rlpost.weights.base_weights import BaseWeights

# (module, W0 [out, in], fp32 buffer [out, in] or None) -> the merged weight [out, in] in fp32.
Merge = Callable[[str, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class WeightUpdate:
    """One version of some modules' weights. A weight is computed only when it is asked for.

    Iterating gives (name in the checkpoint, weight [out, in] in fp32), merged over the stored W0, one module at a time.
    """

    version: int
    fingerprint: str  # SHA-256 over the tensors to be merged, as held in memory
    shapes: Mapping[str, tuple[int, int]]  # module name to the shape (out, in) of its weight
    base: BaseWeights
    _merge: Merge = field(repr=False)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for module in self.shapes:
            yield f"{module}.weight", self.merged(module, self.base[f"{module}.weight"])

    def merged(self, module: str, base: Tensor, out: Tensor | None = None) -> Tensor:
        """The merged weight of `module` over `base`, which is the caller's W0 [out, in] (any float dtype).

        Returns fp32 [out, in], in `out` if given. Raises AdapterError if it cannot be merged.
        """
        return self._merge(module, base, out)


def weight_update(adapter: Adapter, base: BaseWeights) -> WeightUpdate:
    """The weight update of `adapter` on `base`.

    Raises:
        AdapterError: the adapter's tensors differ from their fingerprint, it was trained on another kind of base, or
            PEFT cannot build its layers on the linear layers of `base`.
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
        shapes = {module: adapter.shape(module) for module in adapter.modules}
        return WeightUpdate(adapter.version, arrived, shapes, base, partial(merged_weight, adapter))
    from rlpost.weights.peft_merge import PeftLayers  # its import takes seconds, and few runs need it

    layers = PeftLayers(adapter.config, adapter.tensors, base)
    return WeightUpdate(adapter.version, arrived, layers.shapes, base, layers.merged)


def check_merges(update: WeightUpdate) -> None:
    """Merge one module of each name (q_proj, down_proj, ...), so that a failing merge is found before a swap.

    Raises AdapterError like `WeightUpdate.merged`.
    """
    for module in {module.rpartition(".")[2]: module for module in update.shapes}.values():
        merged = update.merged(module, update.base[f"{module}.weight"])
        if not torch.isfinite(merged).all():
            raise AdapterError(f"Module {module!r}: the merged weight has values that are NaN or infinite.")
