"""Files and folders that appear whole or not at all, and file-system errors in the user's language."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlpost.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError raised inside into an OutputError that names `path`, the reason and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(_message(path, error)) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`; a reader, or a crash, sees the old one or the new one.

    Raises OutputError; the old file is then untouched and nothing else is left behind.
    """
    fresh = path.parent / f".{path.name}.{os.getpid()}.tmp"
    with writing(path):
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replace `folder` by one that `fill` has filled; a reader, or a crash, sees the old one or the new one.

    .tmp-NAME   beside it: being filled, renamed only when all of it is on the disk
    .old-NAME   the one before, until its successor is in place

    Raises OutputError, or what `fill` raises; the old folder is then untouched and nothing else is left behind.
    """
    fresh, old = (folder.parent / f"{prefix}{folder.name}" for prefix in (".tmp-", ".old-"))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_tree(fresh)
        try:
            fresh.mkdir()
            fill(fresh)
            for path in (*fresh.rglob("*"), fresh):
                sync(path)
            if folder.exists():
                _remove_tree(old)
                os.rename(folder, old)
            os.rename(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sync(folder.parent)
        _remove_tree(old)


def append_whole(path: Path, line: bytes) -> None:
    """Append `line` and flush it. Raises OutputError; the file then ends where it ended before."""
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if (written := file.write(line)) != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were taken")
        except OSError:
            with suppress(OSError):  # the first error is the one to tell
                file.truncate(end)
            raise


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder before anything later is trusted."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_tree(folder: Path) -> None:
    """Remove a folder that may not be there, such as what a crash left."""
    if folder.exists():
        shutil.rmtree(folder)


def _message(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        remedy = "free space on that disk; a training run then goes on with resume=<its folder>"
    elif error.errno in _FORBIDDEN:
        remedy = "make the folder writable, or choose another with output_dir="
    else:
        remedy = "check that the path can be written, or choose another with output_dir="
    return f"{path}\n  reason: cannot be written ({reason})\n  remedy: {remedy}"
