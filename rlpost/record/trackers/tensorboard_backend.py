"""Metrics to TensorBoard's event files, under RUN/tensorboard. The only import of TensorBoard.

    tensorboard --logdir RUN/tensorboard

Each axis has a folder, and so is a run of its own to TensorBoard, which knows one count of steps a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlpost.record.trackers.backend import plain_name

FOLDER = "tensorboard"


class TensorBoardBackend:
    """Event files of one start. A resumed run adds files; what it plays again is hidden in the earlier ones."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Raises ImportError without the package `tensorboard`."""
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._folder, self._settings = SummaryWriter, run_dir / FOLDER, settings
        self._writers: dict[str, Any] = {}

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        step = int(metrics[over])
        writer = self._writer(over, step)
        for key, value in metrics.items():
            if key != over:
                writer.add_scalar(plain_name(key), value, step)
        writer.flush()  # so that a run that is killed leaves its lines, and a full disk is told at once

    def _writer(self, over: str, first_step: int) -> Any:
        """The axis' own. Its file tells TensorBoard to drop what earlier ones say of `first_step` and after."""
        if over not in self._writers:
            folder = self._folder / over.replace("/", "-")
            self._writers[over] = self._open(str(folder), purge_step=first_step)
            told = "\n".join(f"    {line}" for line in json.dumps(self._settings, indent=2).splitlines())
            self._writers[over].add_text("settings", told, first_step)  # Markdown: indented is preformatted
        return self._writers[over]

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.close()
