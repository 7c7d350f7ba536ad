"""The adapter as a value: PEFT config, tensors, version and fingerprint, and the merged weight of a LoRA.

Full fine-tuning has the same form: the kind FULL, with whole tensors by the checkpoint's own names.

An `Adapter` goes from the learner to every generator, and is stored in `adapter/` in PEFT's own format. `merged_weight`
defines what an engine must hold after a swap of a LoRA, rsLoRA or DoRA of one rank. `rlpost.weights.update` gives the
weight for every kind of adapter.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rlpost.config.adapter_kinds import FULL
from rlpost.config.schema import BaseKind
from rlpost.errors import AdapterError
from rlpost.record.files import publish_folder
from rlpost.weights.adapter_settings import check_settings

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INDICES = (torch.int32, torch.int64)  # kinds other than LoRA may save the indices of the weights they change


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Factors:
    """One module's part of an adapter, as views of its tensors."""

    A: torch.Tensor  # [rank, in]
    B: torch.Tensor  # [out, rank]
    magnitude: torch.Tensor | None  # [out], DoRA only


@dataclass(frozen=True)
class Adapter:
    """`tensors` have the names that PEFT saves, base_model.model.<module>.lora_A.weight and so on, and are on the CPU.

    Those of the kind FULL have the checkpoint's names and are the parameters' new values; others keep the base's.

    `scaling`, `modules`, `factors` and `shape` are for LoRA's family only; PEFT interprets the tensors of other kinds.
    """

    config: Mapping[str, Any]  # as in adapter_config.json
    tensors: Mapping[str, torch.Tensor]
    version: int
    fingerprint: str
    # The base it was trained on (`lora.base`); None: the file does not say. PEFT's config has no place for it, so it is
    # in the metadata of the tensors' file, which PEFT does not read.
    base: BaseKind | None = None

    @classmethod
    def create(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        version: int,
        base: BaseKind | None = None,
    ) -> Adapter:
        """Check the tensors, copy them to the CPU and fingerprint them.

        `config` is `PeftConfig.to_dict()` or adapter_config.json.

        The tensors are copied, so that the learner's next step cannot change an adapter already handed out.

        Raises:
            AdapterError: an unsupported PEFT type or setting, or a tensor that is not a weight; for LoRA's family also
                an unknown tensor or shapes that do not fit.
        """
        plain = json.loads(json.dumps(dict(config), default=_plain))
        own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        _check(plain, own)
        return cls(plain, own, version, fingerprint(own), base)

    @property
    def has_formula(self) -> bool:
        """Whether `merged_weight` applies: LoRA, rsLoRA or DoRA with one rank and one alpha."""
        patterns = (self.config.get(key) for key in ("rank_pattern", "alpha_pattern"))
        return self.config["peft_type"] == "LORA" and not any(patterns)

    @property
    def scaling(self) -> float:
        """The factor of B @ A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"]) / (
            math.sqrt(rank) if self.config.get("use_rslora", False) else rank
        )

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the adapted modules in the base model, sorted."""
        return tuple(sorted(_modules(self.tensors)))

    def factors(self, module: str) -> Factors:
        """The factors of `module`. Raises AdapterError if the adapter has no such module."""
        prefix = f"base_model.model.{module}"
        if f"{prefix}.lora_A.weight" not in self.tensors:
            raise AdapterError(
                f"The adapter has no tensors for module {module!r}; it has {len(self.modules)} modules."
            )
        return Factors(
            self.tensors[f"{prefix}.lora_A.weight"],
            self.tensors[f"{prefix}.lora_B.weight"],
            self.tensors.get(f"{prefix}.lora_magnitude_vector"),
        )

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the weight that `module` must have."""
        factors = self.factors(module)
        return factors.B.shape[0], factors.A.shape[1]

    def save(self, folder: Path) -> None:
        """Write PEFT's two files into `folder`. It appears in one step, and replaces an existing folder.

        Raises OutputError if it cannot be written; the existing folder is then unchanged.
        """
        publish_folder(Path(folder), self.write)

    def write(self, folder: Path) -> None:
        """Write the two files into a folder that is there; see `save`."""
        metadata = {"format": "pt", "version": str(self.version), "fingerprint": self.fingerprint}
        if self.base is not None:
            metadata["base"] = self.base.value
        # `save_file` is not used, because it does not raise OSError on a full disk.
        (folder / WEIGHTS_FILE).write_bytes(save(dict(self.tensors), metadata))
        (folder / CONFIG_FILE).write_text(json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read a folder written by `save` or by PEFT itself (whose adapters have version 0).

        Raises:
            AdapterError: missing or unreadable files, an unsupported PEFT type or setting, tensors that do not fit the
                config, or bytes that differ from the saved fingerprint.
        """
        folder = Path(folder)
        tensors, metadata = _read_weights(folder / WEIGHTS_FILE)
        config, version = _read_config(folder / CONFIG_FILE), _version(folder / WEIGHTS_FILE, metadata)
        base = _base(folder / WEIGHTS_FILE, metadata)
        try:
            adapter = cls.create(config, tensors, version, base)
        except AdapterError as error:
            raise AdapterError(f"{folder}: {error}") from error
        if metadata.get("fingerprint", adapter.fingerprint) != adapter.fingerprint:
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: the tensors are not those that were saved (fingerprint"
                f" {adapter.fingerprint[:12]}, saved as {metadata['fingerprint'][:12]}). Restore the file from a copy."
            )
        return adapter


def merged_weight(
    adapter: Adapter, module: str, base: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The weight of `module` with the adapter merged in, computed in fp32 from the untouched base.

    LoRA (arXiv 2106.09685): W0 + s B A. rsLoRA: the same with its own s. DoRA (arXiv 2402.09353, equation 5): m * (W0 +
    s B A) / ||W0 + s B A||, with the norm over each output row.

    Args:
        base: W0, [out, in], any float dtype.
        out: fp32 buffer [out, in] for the result, on any device; without it the result is on the base's device.

    Raises:
        AdapterError: the adapter has no such module, its shapes do not fit the base, or some of its modules have other
            ranks or alphas, which this formula does not support.
    """
    if not adapter.has_formula:
        raise AdapterError(
            "merged_weight is LoRA's of one rank and alpha; weight_update takes other adapters."
        )
    factors, expected = adapter.factors(module), adapter.shape(module)
    if base.shape != expected:
        raise AdapterError(
            f"Module {module!r}: the base weight is {tuple(base.shape)}, the adapter's is {expected}."
        )
    merged = torch.empty(base.shape, dtype=torch.float32, device=base.device) if out is None else out
    A, B = (t.to(merged.device, torch.float32) for t in (factors.A, factors.B))
    merged.copy_(base).addmm_(B, A, alpha=adapter.scaling)
    if factors.magnitude is not None:
        magnitude = factors.magnitude.to(merged.device, torch.float32)
        merged.mul_((magnitude / torch.linalg.vector_norm(merged, dim=1)).unsqueeze(1))
    return merged


def _plain(value: Any) -> Any:
    """The value without enums and sets, which PEFT configs contain and JSON does not have."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    raise AdapterError(f"An adapter config cannot hold {value!r} ({type(value).__name__}).")


def _modules(tensors: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """The parts of each module, by module name. Raises AdapterError for a name that is not of a LoRA tensor."""
    parts: dict[str, set[str]] = {}
    for name in tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            raise AdapterError(f"Tensor {name!r} is no LoRA, rsLoRA or DoRA tensor of a linear layer.")
        parts.setdefault(match["module"], set()).add(match["part"])
    return parts


def _check(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    check_settings(config)
    if not tensors:
        raise AdapterError("The adapter has no tensors.")
    kind = config["peft_type"]
    for name, tensor in tensors.items():
        if kind in ("LORA", FULL) or tensor.dtype not in _INDICES:
            _check_values(name, tensor)
    if kind == "LORA":
        _check_lora(config, tensors)


def _check_lora(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    wanted = {"lora_A.weight", "lora_B.weight"}
    if config.get("use_dora", False):
        wanted.add("lora_magnitude_vector")
    for module, parts in _modules(tensors).items():
        if parts != wanted:
            raise AdapterError(
                f"Module {module!r} has {sorted(parts)}; its config asks for {sorted(wanted)}."
            )
        # PEFT decides which module has which rank of a pattern; the shapes are compared when its layers are built.
        rank = None if config.get("rank_pattern") else config["r"]
        _check_shapes(module, {part: tensors[f"base_model.model.{module}.{part}"] for part in parts}, rank)


def _check_values(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise AdapterError(
            f"Tensor {name!r} is {str(tensor.dtype).removeprefix('torch.')}, which needs scales that no adapter's file"
            " has. Save the adapter in float32, bfloat16 or float16."
        )
    broken = tensor.numel() - int(torch.isfinite(tensor).sum())
    if broken:
        raise AdapterError(
            f"Tensor {name!r} has {broken} of {tensor.numel()} values that are NaN or infinite: its training has"
            " diverged, or the file is damaged. Take an earlier copy."
        )


def _check_shapes(module: str, parts: Mapping[str, torch.Tensor], rank: int | None) -> None:
    A, B = parts["lora_A.weight"], parts["lora_B.weight"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] != (rank or A.shape[0]):
        raise AdapterError(
            f"Module {module!r}: A {tuple(A.shape)} and B {tuple(B.shape)} are not of"
            f" {'one rank' if rank is None else f'rank {rank}'}."
        )
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None and magnitude.shape != B.shape[:1]:
        raise AdapterError(
            f"Module {module!r}: lora_magnitude_vector is {tuple(magnitude.shape)}, but the layer has {B.shape[0]}"
            " output rows, each with a magnitude."
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(
            f"{path} is missing; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}."
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object.")
    return config


def _read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise AdapterError(f"{path} is missing; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}.")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is broken: {error}") from error


def _version(path: Path, metadata: Mapping[str, str]) -> int:
    """The version in the metadata; 0 if PEFT wrote the file."""
    text = metadata.get("version", "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise AdapterError(
            f"{path}: its metadata has version {text[:40]!r}, which rlpost did not write. Restore the file from a copy."
        )
    return int(text)


def _base(path: Path, metadata: Mapping[str, str]) -> BaseKind | None:
    """The base that the metadata names; None if PEFT wrote the file, or rlpost before it trained on several."""
    text = metadata.get("base")
    if text is None:
        return None
    if text not in {kind.value for kind in BaseKind}:
        raise AdapterError(
            f"{path}: its metadata has base {text[:40]!r}, which this version of rlpost does not know. Use the version"
            " that wrote it, or restore the file from a copy."
        )
    return BaseKind(text)
