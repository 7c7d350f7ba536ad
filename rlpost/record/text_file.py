"""Reads the documents of a user's text: a UTF-8 file is one, a .jsonl file has one a line, under "text"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

AUTO = "auto"  # in place of a file: the corpus of the bundled model
KEY = "text"


def documents(path: Path, most: int) -> Iterator[str]:
    """The documents of the file, of at most `most` characters together; the last one is cut there.

    Raises OSError if the file cannot be read, ValueError if it is not UTF-8 or a line is no object with a text.
    """
    for document in _whole(path, most):
        yield document[:most]
        most -= len(document)
        if most <= 0:
            return


def _whole(path: Path, most: int) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        if path.suffix != ".jsonl":
            yield file.read(most)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _text(number, line)


def _text(number: int, line: str) -> str:
    record = json.loads(line)
    text = record.get(KEY) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'line {number} is no object with a text under "{KEY}"')
    return text
