"""What the files of a model's folder say of it before its weights are loaded: config.json and safetensors' headers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlpost.errors import ModelError

SAMPLES, SAMPLE_BYTES = 64, 2**16  # of a file's values, evenly spaced, in its fingerprint
_FLOATS = {"F64", "F32", "BF16", "F16"}  # dtypes in safetensors' words that need no scales


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint without its weights. Each file is read once."""

    config: Mapping[str, Any]  # config.json
    entries: Mapping[str, Mapping[str, Any]]  # `dtype` and `shape` of every tensor, by its name

    @classmethod
    def read(cls, folder: Path) -> StoredModel:
        """Raises ModelError if a file cannot be read, or if an index names no file."""
        return cls(read_config(folder), read_entries(folder))

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json that describes the language model."""
        return text_part(self.config)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by its name."""
        return {name: tuple(entry["shape"]) for name, entry in self.entries.items()}

    @cached_property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        """The weight shapes (out, in) of the linear layers by module name, in order.

        Embeddings and the vocabulary head are left out, because adapters are not put on them.
        """
        vocabulary = self.text_config.get("vocab_size")
        layers: dict[str, tuple[int, int]] = {}
        for name, shape in self.shapes.items():
            module, _, part = name.rpartition(".")
            in_a_block = any(level.isdecimal() for level in module.split("."))  # decoders number their blocks
            outside = not in_a_block and (shape[:1] == (vocabulary,) or "embed" in module)
            if part == "weight" and len(shape) == 2 and not outside:
                layers[module] = (shape[0], shape[1])
        return layers

    @property
    def quantization(self) -> str | None:
        """The method by which the checkpoint is quantized, as config.json names it; None if it is not."""
        for config in (self.config, self.text_config):
            # The second name is that of older checkpoints of compressed-tensors.
            for key in ("quantization_config", "compression_config"):
                if settings := config.get(key):
                    method = settings.get("quant_method") if isinstance(settings, dict) else None
                    return str(method or "a method that it does not name")
        return None

    @property
    def coded_layers(self) -> list[str]:
        """The linear layers whose weights are stored in codes (8 bits or less, or whole numbers)."""
        return [m for m in self.linear_layers if self.entries[f"{m}.weight"]["dtype"] not in _FLOATS]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises ModelError if it cannot be read."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        text_part(config)
        return dict(config)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as a model's configuration ({error}).") from error


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language model; of most models all of it."""
    return dict(config.get("text_config") or config)


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The dtype and shape of every tensor, by name. Raises ModelError like `StoredModel.read`."""
    entries: dict[str, dict[str, Any]] = {}
    for path in weight_files(folder):
        entries.update(_header(path))
    entries.pop("__metadata__", None)
    return entries


def fingerprint(folder: Path) -> str:
    """SHA-256 over config.json, the tokenizer, and the sizes, headers and SAMPLES samples of the weights' files.

    It takes a moment for a model of any size, and tells apart two trainings of one model. Raises ModelError as
    `StoredModel.read` does, also if a file is missing.
    """
    digest = hashlib.sha256(json.dumps([read_config(folder), read_entries(folder)], sort_keys=True).encode())
    try:
        for path in weight_files(folder):
            size = path.stat().st_size
            digest.update(f"|{path.name}|{size}|".encode())
            with path.open("rb") as file:
                for i in range(SAMPLES):
                    file.seek(size * i // SAMPLES)
                    digest.update(file.read(SAMPLE_BYTES))
        for path in sorted(folder.glob("tokenizer*")):
            digest.update(path.name.encode() + path.read_bytes())
    except OSError as error:
        raise ModelError(f"{folder} cannot be read ({error}).") from error
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers and vLLM load. Some folders hold the same weights in a second format."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_bytes())["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{index} is no index of weights ({error!r}).") from error
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: a length of 8 bytes, little-endian, then that many bytes of JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}).") from error
    return dict(header)
