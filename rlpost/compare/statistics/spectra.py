"""What the arms did to the spectrum of the weights: means over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlpost.compare.design.types import ArmsAgreement, Cell, Comparison, Status, is_start
from rlpost.compare.statistics.intervals import Interval, crossed_mean

FIGURES = (
    *("relative_norm", "effective_rank", "stable_rank", "intruders"),
    *("principal_share", "principal_by_chance"),
)
AGREEMENT = ("cosine", "columns", "columns_by_chance", "rows", "rows_by_chance")


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with its 95% t interval; of one seed there is no interval."""

    value: float
    interval: Interval | None
    seeds: int


@dataclass(frozen=True)
class ArmSpectrum:
    arm: str
    figures: Mapping[str, SeedMean]  # of FIGURES, those that some seed measured


def arm_spectra(comparison: Comparison) -> list[ArmSpectrum]:
    """Every arm (starts first) of which some seed has a spectrum."""
    found = []
    for arm in (*comparison.starts, *comparison.arms):
        measured = [
            cell.spectrum for cell in comparison.cells if cell.arm == arm and cell.spectrum is not None
        ]
        if measured:
            values = {name: [each[name] for each in measured if name in each] for name in FIGURES}
            found.append(ArmSpectrum(arm, {name: seed_mean(v) for name, v in values.items() if v}))
    return found


def pair_agreements(agreements: Sequence[ArmsAgreement]) -> dict[tuple[str, str], dict[str, SeedMean]]:
    """By pair of arms: the mean over seeds of each figure of AGREEMENT."""
    pairs: dict[tuple[str, str], list[ArmsAgreement]] = {}
    for each in agreements:
        pairs.setdefault((each.first, each.second), []).append(each)
    return {
        pair: {name: seed_mean([each.figures[name] for each in found]) for name in AGREEMENT}
        for pair, found in pairs.items()
    }


def lacking(comparison: Comparison) -> list[Cell]:
    """The finished cells of arms that have no spectrum: their records are of an earlier version."""
    return [
        cell
        for cell in comparison.cells
        if not is_start(cell.arm) and cell.status is Status.DONE and cell.spectrum is None
    ]


def seed_mean(values: Sequence[float]) -> SeedMean:
    """The mean of one value a seed. The interval is that of a t with one degree of freedom less than seeds."""
    mean = crossed_mean(np.array(values, dtype=np.float64)[:, None])
    interval = Interval(mean.value, *mean.interval()) if len(values) > 1 else None
    return SeedMean(mean.value, interval, len(values))
