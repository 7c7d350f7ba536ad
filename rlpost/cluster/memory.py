"""Host memory of a process and of all processes that it started."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """In MiB, summed over a process and its descendants (the ranks of a tensor-parallel engine).

    `rss` counts a page once for every process that maps it. `pss` divides a shared page among all processes that map
    it, so it is what the machine would have without the process; None where the system does not know it.
    """

    pid: int
    rss: float
    pss: float | None

    @property
    def mib(self) -> float:
        """The better of the two figures that is known."""
        return self.rss if self.pss is None else self.pss


def of_this_process() -> Memory:
    """Measure it. Takes milliseconds: Linux adds the pages up itself (smaps_rollup)."""
    this = psutil.Process()
    found = [this.memory_full_info()]
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            found.append(child.memory_full_info())
    shares = [getattr(each, "pss", None) for each in found]
    known = [share for share in shares if share is not None]
    pss = sum(known) / MIB if len(known) == len(shares) else None
    return Memory(this.pid, sum(each.rss for each in found) / MIB, pss)
