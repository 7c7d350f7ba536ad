"""Whether the memory of a process grows steadily.

The first SETTLING measurements of a process do not count: caches and allocators fill up. Of the WINDOW latest after
them, the medians of four quarters must rise from each to the next, by a quarter of the whole rise at least, and the
whole rise must be SHARE of the level and LEAST_MIB. One jump, a largest batch or noise does not rise from quarter to
quarter; a leak does.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import pairwise

SETTLING = 10
WINDOW = 24
QUARTERS = 4
EVENLY = 0.25  # of the whole rise, each step of the three; a straight line has a third
SHARE = 0.01
LEAST_MIB = 8.0


@dataclass
class Growth:
    """One process' measurements, an iteration each."""

    pid: int
    mib: list[float] = field(default_factory=list)

    def see(self, mib: float) -> float | None:
        """Add a measurement. Returns the growth in MiB an iteration if it is steady, and then looks at later ones."""
        self.mib.append(mib)
        rate = steady_growth(self.mib[SETTLING:])
        if rate is not None:
            del self.mib[SETTLING:]
        return rate


def steady_growth(mib: list[float]) -> float | None:
    """MiB an iteration over the last WINDOW measurements; None if there are fewer, or they do not grow steadily."""
    if len(mib) < WINDOW:
        return None
    size = WINDOW // QUARTERS
    latest = mib[-WINDOW:]
    medians = [statistics.median(latest[i : i + size]) for i in range(0, WINDOW, size)]
    rise = medians[-1] - medians[0]
    if rise < max(LEAST_MIB, SHARE * medians[0]):
        return None
    if min(after - before for before, after in pairwise(medians)) < EVENLY * rise:
        return None
    return rise / (WINDOW - size)
