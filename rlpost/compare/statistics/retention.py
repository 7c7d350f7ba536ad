"""What the arms lost, and how far they went for it: means over seeds (docs/retention.md).

Cell.retention ─▶ elsewhere: a Comparison on the other environment, for the statistics of success
              └▶ ways: what was lost against the KL to the start, a curve an arm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rlpost.compare.design.types import (
    Cell,
    ComparedVariant,
    Comparison,
    Evaluation,
    Point,
    Retained,
    Role,
    is_start,
)
from rlpost.compare.statistics.spectra import SeedMean, seed_mean

HEADLINE = "k3_token"  # as on a run's page: never negative, in nats per token
ELSEWHERE, RULES, TEXT = "other environment", "held-out rules", "text"
MEASURES = (ELSEWHERE, RULES, TEXT)


@dataclass(frozen=True)
class Way:
    """An arm's means over seeds along its budget: what it had lost of a measure, and its KL to the start."""

    arm: str
    kl: tuple[SeedMean, ...]  # nats per token; the first is the start's, 0
    lost: tuple[SeedMean, ...]  # a share of success, or nats per token of the text; the first is 0


def elsewhere(comparison: Comparison) -> Comparison | None:
    """The arms on the other environment, from their own starts; None if no cell played one.

    A start has, for each seed, what the first of its arms with that seed played before its training.
    """
    cells = [cell for cell in comparison.cells if any(each.evaluations for each in cell.retention)]
    if not cells:
        return None
    names = dict.fromkeys(name for cell in cells for each in cell.retention for name in each.evaluations)
    starts = {
        (comparison.start_of(cell.arm), cell.seed): cell
        for cell in reversed(cells)
        if cell.retention[0].share == 0
    }
    return replace(
        comparison,
        train_variant="",
        variants={name: ComparedVariant(Role.NOT_TRAINED, "") for name in names},
        cells=(
            *(_cell(replace(cell, arm=start), cell.retention[:1]) for (start, _), cell in starts.items()),
            *(_cell(cell, [each for each in cell.retention if each.share > 0]) for cell in cells),
        ),
        base=None,
        agreements=(),
    )


def _cell(cell: Cell, retained: Sequence[Retained]) -> Cell:
    spent = cell.points[-1].compute  # not of each share: no statistic of success reads it
    points = tuple(Point(each.share, spent, each.evaluations) for each in retained)
    return replace(cell, points=points)


def final(comparison: Comparison, arm: str, figure: Callable[[Cell], float | None]) -> SeedMean | None:
    """The mean over the arm's seeds of a figure; None if no seed has it."""
    found = [figure(cell) for cell in comparison.cells if cell.arm == arm and len(cell.retention) > 1]
    values = [each for each in found if each is not None]
    return seed_mean(values) if values else None


def distance(retained: Retained, direction: str) -> float | None:
    """The headline KL of `forward` or `reverse`, in nats per token; None if it was not measured."""
    return retained.kl.get(f"{direction}/{HEADLINE}")


def text_lost(cell: Cell) -> float | None:
    """By how many nats per token the text's loss rose from the cell's start to its end."""
    return _text_lost(cell, cell.retention[-1])


def ways(comparison: Comparison, direction: str) -> dict[str, list[Way]]:
    """By measure (of MEASURES): a way for each arm that has at least its start and a point."""
    inits = {(cell.arm, cell.seed): cell for cell in comparison.cells if is_start(cell.arm)}

    def rules(cell: Cell, now: Retained) -> float | None:
        init = inits.get((comparison.start_of(cell.arm), cell.seed))
        return _rules_lost(comparison.variants, init, cell, now)

    lost = {ELSEWHERE: _success_lost, RULES: rules, TEXT: _text_lost}
    found = {
        name: [_way(comparison, arm, direction, lost[name]) for arm in comparison.arms] for name in MEASURES
    }
    return {
        name: drawn for name, each in found.items() if (drawn := [way for way in each if len(way.kl) > 1])
    }


def _way(
    comparison: Comparison, arm: str, direction: str, lost: Callable[[Cell, Retained], float | None]
) -> Way:
    by_share: dict[float, list[tuple[float, float]]] = {}
    for cell in (each for each in comparison.cells if each.arm == arm):
        for now in cell.retention:
            x, y = distance(now, direction), lost(cell, now)
            if x is not None and y is not None:
                by_share.setdefault(now.share, []).append((x, y))
    points = [by_share[share] for share in sorted(by_share)]
    kl, losses = (tuple(seed_mean([pair[i] for pair in each]) for each in points) for i in (0, 1))
    return Way(arm, kl, losses)


def _success_lost(cell: Cell, now: Retained) -> float | None:
    """The mean over variants of the success lost since the cell's start."""
    return _mean_lost(cell.retention[0].evaluations, now.evaluations)


def _rules_lost(
    variants: Mapping[str, ComparedVariant], init: Cell | None, cell: Cell, now: Retained
) -> float | None:
    """The same on the run's own held-out rules, since init's evaluation, which has the same episodes."""
    if init is None or not init.points:
        return None
    before = {name: e for name, e in init.points[-1].evaluations.items() if variants[name].held_out}
    points = {0.0: before} | {point.share: dict(point.evaluations) for point in cell.points}
    return _mean_lost(before, points.get(now.share, {}))


def _mean_lost(before: Mapping[str, Evaluation], now: Mapping[str, Evaluation]) -> float | None:
    both = [name for name in before if name in now]
    return fmean(_rate(before[name]) - _rate(now[name]) for name in both) if both else None


def _rate(evaluation: Evaluation) -> float:
    return fmean(evaluation.successes)


def _text_lost(cell: Cell, now: Retained) -> float | None:
    before = cell.retention[0].text
    return None if before is None or now.text is None else now.text - before
