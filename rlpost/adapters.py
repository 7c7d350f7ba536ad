"""The adapter as a value: PEFT config, tensors, version and fingerprint.

`Adapter` is what travels from the learner to every generator and what lies in `adapter/` on disk, in PEFT's
own format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Adapter:
    """`tensors` carry PEFT's saved names: base_model.model.<module>.lora_A.weight and so on, on the CPU."""

    config: Mapping[str, Any]  # as in adapter_config.json
    tensors: Mapping[str, torch.Tensor]
    version: int
    fingerprint: str
