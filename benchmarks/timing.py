"""Times two sides in one run, in turns, so that other work of the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work for each repeat of one side, in the order of the repeats."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.name}: {spread(self.seconds)} s"


@dataclass(frozen=True)
class Side:
    """One side of a comparison. `run` is timed and returns the units of work done; `prepare` is not timed."""

    run: Callable[[], int]
    prepare: Callable[[], object] = lambda: None


def in_turns(sides: Mapping[str, Side], repeats: int, warm_ups: int = 1) -> dict[str, Timing]:
    """Run every side once per round. The first `warm_ups` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_ups + repeats):
        for name, side in sides.items():
            side.prepare()
            started = time.perf_counter()
            work = side.run()
            if number >= warm_ups:
                seconds[name].append((time.perf_counter() - started) / work)
    return {name: Timing(name, tuple(taken)) for name, taken in seconds.items()}


def ratio(above: Timing, below: Timing) -> str:
    """above / below for each round: median and range."""
    return spread([a / b for a, b in zip(above.seconds, below.seconds, strict=True)])


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}, n={len(values)})"
