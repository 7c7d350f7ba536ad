"""How much memory the processes of this node may have together: the machine's, or its control group's if that is less.

Linux' control groups are read as files: version 2 (`memory.max`) and version 1 (`memory.limit_in_bytes`). A limit of a
group holds for the groups inside it, so all groups above this process's count.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit() -> int:
    """Bytes, with the swap space. Other processes may hold some of it now: nothing that could fit is left out."""
    machine = int(psutil.virtual_memory().total)
    return min([machine, *group_limits()]) + int(psutil.swap_memory().total)


def group_limits(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> list[int]:
    """The limits of this process's control group and of those above it, in bytes; empty if there is none."""
    return [limit for file in _files(groups, membership) if (limit := _number(file)) is not None]


def _files(groups: Path, membership: Path) -> Iterator[Path]:
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that of the host, of which only the root is seen here.
        folder = root / path.lstrip("/")
        yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))


def _number(file: Path) -> int | None:
    """The limit in a file; None for `max`, or if the file is not there."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
