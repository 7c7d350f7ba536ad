"""Which files of a checkpoint belong to which rank: what a rank writes, and what it must have to load.

DeepSpeed names the rank in a file that one rank alone has. Rank 0 writes every other file, and all ranks read it. What
the driver adds for itself (rlpost.tasks.lag) counts as rank 0's.

    learner/mp_rank_00_model_states.pt                    written by rank 0, read by all
    learner/zero_pp_rank_1_mp_rank_00_optim_states.pt     written and read by rank 1
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from rlpost.errors import CheckpointError

Share: TypeAlias = dict[str, tuple[int, str]]
"""The files that one rank wrote: size in bytes and SHA-256, by name relative to the checkpoint's folder."""

_OF_A_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(?P<rank>\d+)_")


def owner(name: str) -> int | None:
    """The rank that alone writes and reads the file; None if rank 0 writes it and all ranks read it."""
    found = _OF_A_RANK.match(name.rpartition("/")[2])
    return None if found is None else int(found["rank"])


def share_of(folder: Path, rank: int) -> Share:
    """What `rank` wrote into `folder`, to which other ranks may have written too."""
    mine = [name for name in names_in(folder) if (owner(name) or 0) == rank]
    return {name: entry(folder / name) for name in mine}


def entry(path: Path) -> tuple[int, str]:
    """A file's size in bytes and SHA-256."""
    return _size(path), digest(path)


def needed_by(names: Iterable[str], rank: int) -> list[str]:
    """The files that `rank` reads when it loads."""
    return [name for name in names if owner(name) in (None, rank)]


def names_in(folder: Path) -> list[str]:
    """The names of all files below `folder`, relative to it, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_ranks(folder: Path, ranks: int, divided: bool) -> None:
    """Raise CheckpointError if `folder` lacks the share of one of the `ranks`.

    `divided`: whether each rank has a part of the optimizer's state (ZeRO 1 to 3). Otherwise rank 0 writes all of it.
    """
    owners = {owner(name) for name in names_in(folder)}
    lacking = [rank for rank in range(ranks) if divided and rank not in owners]
    if None not in owners:
        lacking = sorted({0, *lacking})
    if lacking:
        raise CheckpointError(
            f"{folder}\n  reason: of {ranks} learner ranks, it lacks the files of rank {', '.join(map(str, lacking))}\n"
            "  remedy: resume from a checkpoint that has them, or start the run anew"
        )


def faults(folder: Path, shares: Sequence[Share]) -> list[str]:
    """How the files in `folder` differ from what the ranks wrote, a phrase a file; empty if they are the same."""
    found = []
    for rank, share in enumerate(shares):
        for name, (size, sha256) in share.items():
            if not is_there(folder / name, size):
                found.append(f"{name} of learner rank {rank} is missing or not {size} bytes long")
            elif digest(folder / name) != sha256:
                found.append(f"{name} of learner rank {rank} has other bytes than the rank wrote")
    return found


def is_there(path: Path, size: int) -> bool:
    """Whether a file of this size, in bytes, is there."""
    return path.is_file() and _size(path) == size


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size
