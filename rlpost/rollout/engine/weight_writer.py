"""The target of a weight update: what a worker's writer must do, and what it can prove afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpost.errors import SwapError
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


def together(answers: Sequence[WriteReport | str]) -> WriteReport:
    """The report of a write by all ranks of an engine: the least that any has proven.

    `answers`: by rank, its report or why it failed. A rank does not raise, since vLLM would then leave the answers of
    the ranks after it unread, and take them for those to its next question.

    Raises SwapError if a rank failed, naming it, or if they did not all get the same tensors.
    """
    failed = [
        f"rank {rank} of {len(answers)}: {answer}" if len(answers) > 1 else answer
        for rank, answer in enumerate(answers)
        if isinstance(answer, str)
    ]
    if failed:
        raise SwapError(" ".join(failed))
    reports = [answer for answer in answers if isinstance(answer, WriteReport)]
    if len({(report.fingerprint, report.modules_expected) for report in reports}) != 1:
        raise SwapError(f"The ranks did not get the same tensors: {reports}.")
    return WriteReport(
        reports[0].fingerprint,
        min(report.modules_bound for report in reports),
        reports[0].modules_expected,
        max(report.rounding_loss for report in reports),
    )
