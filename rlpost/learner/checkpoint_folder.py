"""The folder of a checkpoint on its way between the driver and ranks that do not see it.

save   a rank writes into the run's folder if it sees it, else into a folder of its node ─▶ the driver fetches the files
load   a rank reads the run's folder if it sees it, else a folder of its node ◀─ the driver sends the files it needs

Files travel through Ray's object store, one chunk at a time, so neither side holds more of them in memory.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import ray

from rlpost.cluster import actor_calls
from rlpost.cluster.node_tasks import this_node
from rlpost.cluster.ray_folder import RayFolder
from rlpost.errors import CheckpointError
from rlpost.record.checkpoint import MARK
from rlpost.record.files import writing
from rlpost.record.shares import Share, digest, is_there, names_in, needed_by

CHUNK = 32 * 2**20  # bytes that travel at a time

Sign: TypeAlias = tuple[str, str]
"""A file that only the driver's folder has: its name and the SHA-256 of its bytes."""


class CheckpointFolder:
    """A rank's side: the run's folder if this rank sees it, else one of its node, which `close` removes.

    `sign`: by which the rank knows the driver's folder; see `signed`. A folder of a rank that was killed is removed by
    the next run on its node (rlpost.cluster.ray_folder).
    """

    def __init__(self, folder: Path, sign: Sign) -> None:
        name, sha256 = sign
        seen = (folder / name).is_file() and digest(folder / name) == sha256
        self._own = None if seen else RayFolder()
        self.path = folder if self._own is None else self._own.path / folder.name
        if self._own is not None:
            self.path.mkdir()

    @property
    def is_the_runs(self) -> bool:
        return self._own is None

    @contextmanager
    def naming_this_node(self) -> Iterator[None]:
        """Turn an OSError inside into a CheckpointError that names the node, since its disk is not the driver's."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path} on {this_node()}\n  reason: {error.strerror or error}\n"
                "  remedy: free space there, or make the folder writable (TMPDIR names the folder of a node)"
            ) from error

    def read(self, name: str, offset: int) -> bytes:
        """At most CHUNK bytes of a file, from `offset` on."""
        with self.naming_this_node(), (self.path / name).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK)

    def append(self, name: str, data: bytes) -> None:
        """Add bytes to the end of a file, which the first ones create."""
        target = self.path / name
        with self.naming_this_node():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(data)

    def close(self) -> None:
        if self._own is not None:
            self._own.remove()


@contextmanager
def signed(folder: Path) -> Iterator[Sign]:
    """The sign of `folder`: the mark of a whole checkpoint, which is only read; else a file that is there inside."""
    if (folder / MARK).is_file():
        yield MARK, digest(folder / MARK)
        return
    sign = folder / f".seen-{secrets.token_hex(16)}"
    with writing(folder):
        sign.touch()
    try:
        yield sign.name, digest(sign)
    finally:
        sign.unlink(missing_ok=True)


def fetch(rank: Any, who: str, share: Share, folder: Path, timeout_s: float) -> None:
    """Bring those files of a rank's share into `folder` that are not there. `timeout_s` is for one chunk.

    Raises ClusterError, naming `who`, if the rank dies or does not answer, and OutputError if the disk is full.
    """
    for name, (size, _) in share.items():
        target = folder / name
        if is_there(target, size):
            continue
        # If both see one file system after all, the rank may still be reading the file of this name.
        half = target.with_name(f"{target.name}.half")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                while file.tell() < size:
                    data = actor_calls.get(rank.read.remote(name, file.tell()), timeout_s, who)
                    if not data:
                        raise CheckpointError(f"{name} of {who} ended after {file.tell()} of {size} bytes")
                    file.write(data)
            os.replace(half, target)


def send(rank: Any, who: str, number: int, folder: Path, timeout_s: float) -> None:
    """Send the files of `folder` that rank `number` needs to load. Raises ClusterError as `fetch` does."""
    for name in needed_by(names_in(folder), number):
        with (folder / name).open("rb") as file:
            data = file.read(CHUNK)
            while True:  # an empty file is sent too
                actor_calls.get(rank.append.remote(name, ray.put(data)), timeout_s, who)
                data = file.read(CHUNK)
                if not data:
                    break
