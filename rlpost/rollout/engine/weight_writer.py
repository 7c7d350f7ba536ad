"""Where a weight update goes: what a worker's writer must do, and what it can prove afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlpost.weights.update import WeightUpdate


@dataclass(frozen=True)
class WriteReport:
    """What a writer can prove after writing. See `rlpost.rollout.engine.protocol.SwapReport`."""

    fingerprint: str  # of the tensors as they lie here, that were merged; empty for the bare base
    modules_bound: int
    modules_expected: int
    rounding_loss: float


class WeightWriter(Protocol):
    """Keeps a running model's weights at the checkpoint's, but for what the last update says."""

    def write(self, update: WeightUpdate | None) -> WriteReport:
        """Make `update` (None: the bare checkpoint) what the model computes with, and prove it.

        Modules that an earlier update wrote and this one does not name go back to the checkpoint's weights.

        Raises:
            SwapError: a module cannot be written (nothing has been then), or a written layer does not compute with
                what was written (the layers are then mixed, and the caller must write something else).
            AdapterError: a weight could not be merged (the layers may be mixed then, too).
        """
