"""Writes metrics to TensorBoard's event files, under RUN/tensorboard. Only this file imports TensorBoard.

    tensorboard --logdir RUN/tensorboard

Each axis has its own folder, and so is a separate run in TensorBoard, which has one count of steps per run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlpost.record.trackers.backend import plain_name

FOLDER = "tensorboard"


class TensorBoardBackend:
    """Event files of one start. A resumed run adds files; steps that it repeats are hidden in the earlier files."""

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
        writer.flush()  # a killed run keeps its lines, and a full disk is reported at once

    def _writer(self, over: str, first_step: int) -> Any:
        """The writer of an axis. Its file tells TensorBoard to drop steps from `first_step` on in earlier files."""
        if over not in self._writers:
            folder = self._folder / over.replace("/", "-")
            self._writers[over] = self._open(str(folder), purge_step=first_step)
            told = "\n".join(f"    {line}" for line in json.dumps(self._settings, indent=2).splitlines())
            # In Markdown, indented text is preformatted.
            self._writers[over].add_text("settings", told, first_step)
        return self._writers[over]

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.close()
