"""The target of a weight update: what a worker's writer must do, and what it can prove afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import WeightUpdate


@dataclass(frozen=True)
class WriteReport:
    """The proof of a write. See `rlpost.rollout.engine.protocol.SwapReport`."""

    fingerprint: str  # of the adapter's tensors, as they arrived here; empty for the bare base model
    modules_bound: int  # parameters that were rewritten; for LoRA one a module
    modules_expected: int
    rounding_loss: float


class WeightWriter(Protocol):
    """Keeps a running model's weights equal to the checkpoint's, changed by the last update only."""

    def write(self, update: WeightUpdate | None) -> WriteReport:
        """Make the model compute with `update` (None: the bare checkpoint), and prove it.

        Parameters that an earlier update wrote and this one does not name return to the checkpoint's values.

        Raises:
            SwapError: a parameter cannot be written (nothing has been written then), or a written layer does not
                compute with its new value (the layers are then mixed, and the caller must write something else).
            AdapterError: a value could not be merged (the layers may be mixed then, too).
        """

    def set_base(self, base: BaseWeights) -> WriteReport:
        """Make the model compute with `base` in place of the checkpoint, and prove it like `write`.

        Every later update is merged over `base`. Raises SwapError like `write`, or if a weight that `base` changes has
        no place in the model.
        """
