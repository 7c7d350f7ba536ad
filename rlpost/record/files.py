"""Writes files and folders in one step, complete or not at all, and turns file-system errors into plain messages."""

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
    """Turn an OSError raised inside into an OutputError that names `path`, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(_message(path, error)) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file `path` by one that holds `data`. A reader, also after a crash, sees the old or the new file.

    Raises OutputError; the old file is then unchanged and nothing else is left behind.
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
    """Replace `folder` by one that `fill` has filled. A reader, also after a crash, sees the old or the new folder.

    .tmp-NAME   beside it: being filled, renamed only when all of it is on disk
    .old-NAME   beside it: the previous folder, until the new one is in place

    Raises OutputError, or any error of `fill`; the old folder is then unchanged and nothing else is left behind.
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
    """Append `line` and flush it. Raises OutputError; the file then ends where it did before."""
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if (written := file.write(line)) != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were taken")
        except OSError:
            with suppress(OSError):  # the first error is the one to report
                file.truncate(end)
            raise


def sync(path: Path) -> None:
    """Flush a written file or folder to disk, so that later writes can rely on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, for example after a crash. Does nothing if it does not exist."""
    if folder.exists():
        shutil.rmtree(folder)


def _message(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        remedy = "free space on that disk; a training run then goes on with resume=<its folder>"
    elif error.errno in _FORBIDDEN:
        remedy = "make the folder writable, or name another place (of a run: output_dir=)"
    else:
        remedy = "check that the path can be written, or name another place (of a run: output_dir=)"
    return f"{path}\n  reason: cannot be written ({reason})\n  remedy: {remedy}"
