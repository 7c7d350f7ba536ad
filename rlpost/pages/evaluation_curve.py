"""Success of every evaluation of a run over its iterations: before, after the warm start, on the way, at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpost.pages import figures
from rlpost.pages.figures import Series
from rlpost.pages.images import Image
from rlpost.record.run_dir import RunDir, read_trajectories, stage_number

Line = Mapping[str, Any]


def drawn(run_dir: RunDir, lines: Sequence[Line]) -> Image | None:
    """The figure; None where fewer than two points are on record. Raises OutputError for a broken record."""
    return figure(series(run_dir, lines, success_of), lines)


def figure(found: Sequence[Series], lines: Sequence[Line]) -> Image | None:
    """The figure of `series`; None for fewer than two points, which are no curve."""
    if sum(len(line.ys) for line in found) < 2:
        return None
    return figures.evaluations("Success when evaluated", found, f"finished {_steps_of(lines)[0]}s")


def series(run_dir: RunDir, lines: Sequence[Line], success: Callable[[Path], float | None]) -> list[Series]:
    """One a (variant, decoding), its points in the order of the run.

    Args:
        lines: of metrics.jsonl.
        success: the share of a file's episodes that were solved; None for a file without episodes.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for (stage, variant, decoding), path in run_dir.evaluations().items():
        if (share := success(path)) is not None:
            points.setdefault(f"{variant}, {decoding}", []).append((finished_before(stage, lines), share))
    return [_series(label, each) for label, each in points.items()]


def _series(label: str, points: Sequence[tuple[float, float]]) -> Series:
    ordered = sorted(points, key=lambda point: point[0])  # stable: before comes before warm, both at 0
    return Series(label, [x for x, _ in ordered], [y for _, y in ordered])


def finished_before(stage: str, lines: Sequence[Line]) -> int:
    """How many iterations (task=sft: supervised steps) were finished when a stage was evaluated."""
    if (number := stage_number(stage)) is not None:
        return number + 1
    return _steps_of(lines)[1] if stage == "after" else 0


def _steps_of(lines: Sequence[Line]) -> tuple[str, int]:
    """What a run counts, iterations or (where it has none) supervised steps, and how many it has finished."""
    for name, key in (("iteration", "iteration"), ("supervised step", "step")):
        if found := [line[key] for line in lines if line.get(key) is not None]:
            return name, max(found) + 1
    return "iteration", 0


def success_of(path: Path) -> float | None:
    """The share of a file's episodes that were solved."""
    episodes = read_trajectories(path)
    return sum(t.success for t in episodes) / len(episodes) if episodes else None
