"""Tensors compared bit by bit, and what of them differs first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def first_tensor(recorded: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """The first tensor that differs in a bit, in the order of the record, and by how much; None if all are equal."""
    for name, then in recorded.items():
        if name not in now:
            return f"{name} is on record alone"
        if difference := _difference(then, now[name]):
            return f"{name} {difference}"
    added = [name for name in now if name not in recorded]
    return f"{added[0]} is not on record" if added else None


def _difference(then: Tensor, now: Tensor) -> str | None:
    if (then.dtype, then.shape) != (now.dtype, now.shape):
        return f"is {then.dtype} {tuple(then.shape)} on record, {now.dtype} {tuple(now.shape)} now"
    if torch.equal(_bits(then), _bits(now)):
        return None
    size = then.element_size()
    changed = (_bits(then) != _bits(now)).reshape(-1, size).any(dim=1)
    largest = (then.reshape(-1)[changed].double() - now.reshape(-1)[changed].double()).abs().max().item()
    return f"differs in {int(changed.sum())} of {then.numel()} values, by {largest:.3g} at most"


def _bits(tensor: Tensor) -> Tensor:
    """[numel * bytes of a value] uint8."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
