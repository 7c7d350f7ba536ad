"""The weights of a model folder from which every merge starts: the untouched checkpoint, or its round trip to NF4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file
from torch import Tensor

from rlpost.config.schema import BaseKind
from rlpost.errors import ModelError
from rlpost.kernels import nf4
from rlpost.weights.models import linear_layers
from rlpost.weights.stored_model import weight_files


class BaseWeights(Mapping[str, Tensor]):
    """Parameters by their names in the checkpoint: memory-mapped, read-only, on the CPU, in their stored dtype.

    Raises ModelError if a file of the checkpoint is missing.
    """

    kind: ClassVar[BaseKind] = BaseKind.stored

    def __init__(self, folder: Path):
        self.folder = folder
        self._tensors: dict[str, Tensor] = {}
        for path in weight_files(folder) or [folder / "model.safetensors"]:
            if not path.is_file():
                raise ModelError(f"{path} is missing; a swap needs the base weights as safetensors.")
            self._tensors.update(load_file(path))

    @property
    def changed(self) -> tuple[str, ...]:
        """The modules whose weight is not the checkpoint's."""
        return ()

    def again(self) -> BaseWeights:
        """The same weights in other memory: a separate mapping of the files."""
        return BaseWeights(self.folder)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, whose value is not computed for it."""
        return tuple(self._tensors[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Nf4Weights(BaseWeights):
    """The checkpoint with the weights of its linear layers (`models.linear_layers`) rounded to NF4, in fp32.

    Learner and engines take their quantized layers from here, so they have the same ones. A layer is quantized when it
    is first asked for; its codes are kept, and its weight is computed from them each time.
    """

    kind = BaseKind.nf4

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._layers = linear_layers(folder)
        self._codes: dict[str, nf4.Quantized] = {}

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(self._layers)

    def again(self) -> Nf4Weights:
        """The same weights, of the same codes. Every weight that is asked for has memory of its own."""
        other = Nf4Weights(self.folder)
        other._codes = self._codes
        return other

    def codes(self, module: str) -> nf4.Quantized:
        """The weight of a linear layer in NF4. Raises ModelError if the checkpoint does not have it as floats."""
        if module not in self._codes:
            stored = self._tensors[f"{module}.weight"]
            if stored.element_size() < 2 or not stored.is_floating_point():
                raise ModelError(
                    f"{self.folder}: {module} is stored in {str(stored.dtype).removeprefix('torch.')}, so it is"
                    " quantized already, and lora.base=nf4 cannot quantize it. Give a model in float32, bfloat16 or"
                    " float16."
                )
            self._codes[module] = nf4.quantize(stored)
        return self._codes[module]

    def __getitem__(self, name: str) -> Tensor:
        module, _, part = name.rpartition(".")
        if part == "weight" and module in self._layers:
            return nf4.dequantize(self.codes(module))
        return super().__getitem__(name)


_CLASSES: dict[BaseKind, type[BaseWeights]] = {each.kind: each for each in (BaseWeights, Nf4Weights)}


def base_weights(folder: Path, kind: BaseKind | None) -> BaseWeights:
    """The weights of `folder` as `lora.base` has them; as stored if an adapter does not say (None).

    Raises ModelError if a file of the checkpoint is missing.
    """
    return _CLASSES[kind or BaseKind.stored](folder)
