"""The untouched checkpoint of a model folder, from which every merge starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from rlpost.errors import ModelError
from rlpost.weights.models import weight_files


class BaseWeights(Mapping[str, Tensor]):
    """Parameters by their names in the checkpoint: memory-mapped, read-only, on the CPU, in their stored dtype.

    Raises ModelError if a file of the checkpoint is missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._tensors: dict[str, Tensor] = {}
        for path in weight_files(folder) or [folder / "model.safetensors"]:
            if not path.is_file():
                raise ModelError(f"{path} is missing; a swap needs the base weights as safetensors.")
            self._tensors.update(load_file(path))

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
