"""The checked evaluations of a comparison by arm, variant and share; statistics and causes iterate over them."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.compare.design.types import Cell, Comparison, Evaluation, Status
from rlpost.errors import ComparisonError

Key = tuple[str, str, float]
"""(arm, variant, share of the compute budget)"""

BySeed = dict[int, Evaluation]


def by_key(comparison: Comparison) -> dict[Key, BySeed]:
    """The evaluations of all finished cells, in the order arm (starts first), variant, share, seed.

    Raises ComparisonError for two cells with the same arm and seed, for an empty or ragged evaluation, and for one
    whose instances differ from those of the variant's other evaluations, since it could not be paired.
    """
    cells = _cells(comparison)
    evaluations: dict[Key, BySeed] = {}
    for arm in (*comparison.starts, *comparison.arms):
        for variant in comparison.variants:
            for share in _shares(cells, arm, variant):
                evaluations[arm, variant, share] = dict(_of(comparison.seeds, cells, arm, variant, share))
    for variant in comparison.variants:
        _check({key: seeds for key, seeds in evaluations.items() if key[1] == variant})
    return evaluations


def _cells(comparison: Comparison) -> dict[tuple[str, int], Cell]:
    evaluations = {(cell.arm, cell.seed): cell for cell in comparison.cells if cell.status is Status.DONE}
    if len({(cell.arm, cell.seed) for cell in comparison.cells}) != len(comparison.cells):
        raise ComparisonError(f"{comparison.name}: two cells have the same arm and seed; each may run once")
    return evaluations


def _shares(cells: dict[tuple[str, int], Cell], arm: str, variant: str) -> list[float]:
    points = [point for (name, _), cell in cells.items() if name == arm for point in cell.points]
    return sorted({point.share for point in points if variant in point.evaluations})


def _of(
    seeds: tuple[int, ...], cells: dict[tuple[str, int], Cell], arm: str, variant: str, share: float
) -> Iterator[tuple[int, Evaluation]]:
    for seed in seeds:
        cell = cells.get((arm, seed))
        for point in cell.points if cell is not None else ():
            if point.share == share and variant in point.evaluations:
                yield seed, point.evaluations[variant]


def _check(evaluations: dict[Key, BySeed]) -> None:
    first: tuple[str, ...] | None = None
    for (arm, variant, share), seeds in evaluations.items():
        for seed, evaluation in seeds.items():
            what = f"{arm}, seed {seed}, {variant} at {share:.0%}"
            fields = (evaluation.successes, evaluation.outcomes, evaluation.solved_at)
            n = len(evaluation.instances)
            if n == 0 or any(len(field) != n for field in fields):
                raise ComparisonError(
                    f"{what}: the evaluation is empty or its fields differ in length; run it again"
                )
            first = first or evaluation.instances
            if evaluation.instances != first:
                raise ComparisonError(
                    f"{what}: played other instances than the other cells, which cannot be paired; "
                    "give every cell the same evaluation seed and number of instances"
                )
