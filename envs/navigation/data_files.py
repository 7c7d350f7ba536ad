"""The importers' common parts: their error, reading a whole file, and cleaning names for a prompt."""

from __future__ import annotations

from pathlib import Path

_MOST_NAME = 120  # characters


class DataError(ValueError):
    """A file cannot be read as what it should be. The message names the file, the position in it and the reason."""

    def __init__(self, path: Path, place: str, reason: str) -> None:
        super().__init__(f"{path}: {place}: {reason}")


def contents(path: Path, most: int) -> bytes:
    """A file's bytes. Raises DataError if it is missing, not a file, unreadable or larger than `most` bytes."""
    try:
        size = path.stat().st_size
        if size > most:
            raise DataError(path, "size", f"{size} bytes, more than the {most} that are read")
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, "file", error.strerror or str(error)) from error


def clean(name: str) -> str:
    """A name as one line of printable characters, of limited length."""
    printable = "".join(each if each.isprintable() else " " for each in name)
    return " ".join(printable.split())[:_MOST_NAME]
