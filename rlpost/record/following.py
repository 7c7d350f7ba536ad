"""A file of JSON lines that another process appends to, read as it grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO


class Following:
    """The whole lines of a file so far. Each call of `read` reads only the bytes that came since the one before.

    A resumed run replaces its metrics.jsonl by a shorter one: a file that is another one, or shorter than what was read
    of it, is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = 0  # times that the file was read from its start
        self._forget()

    def _forget(self, inode: int | None = None) -> None:
        self._inode, self._offset = inode, 0
        self.lines: list[dict[str, Any]] = []
        self.unreadable = 0  # whole lines that hold no JSON object
        self._begun += 1

    @property
    def version(self) -> tuple[int, int]:
        """Another one after each `read` that found something new."""
        return self._begun, self._offset

    def read(self) -> list[dict[str, Any]]:
        """`lines`, with those that are new. What follows the last newline is still being written, and waits.

        A file that is not there has no lines.
        """
        try:
            with self._path.open("rb") as file:
                self._read(file)
        except FileNotFoundError:
            self._forget()
        return self.lines

    def _read(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._forget(status.st_ino)
        file.seek(self._offset)
        whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            self.lines.append(record)
        else:
            self.unreadable += 1
