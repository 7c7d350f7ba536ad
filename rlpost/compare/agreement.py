"""How the updates of two arms with one seed agree: principal angles and cosine, since their common start."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from rlpost.compare.design.types import ArmsAgreement, Comparison, Status
from rlpost.record.run_dir import RunDir
from rlpost.record.spectrum import mean_agreement
from rlpost.weights.adapters import CONFIG_FILE, Adapter
from rlpost.weights.base_weights import base_weights
from rlpost.weights.spectrum import agreement, has_factors


def agreements(
    comparison: Comparison, folder: Path, model_folder: Path, given: Path | None
) -> tuple[ArmsAgreement, ...]:
    """Every pair of arms of every seed that have one start, from the cells' adapters.

    `given`: the adapter from which the whole comparison starts, if there is one: a start without training of its own
    leaves none.

    Pairs of kinds without factors (DoRA) are left out, as they need a decomposition of every weight; rlpost spectrum
    does that. Raises AdapterError for a damaged adapter.
    """
    default = None if given is None else Adapter.load(given)
    return tuple(
        each
        for seed in comparison.seeds
        for each in _of_seed(comparison, folder, model_folder, seed, default)
    )


def _of_seed(
    comparison: Comparison, folder: Path, model_folder: Path, seed: int, default: Adapter | None
) -> list[ArmsAgreement]:
    adapters = _adapters(comparison, folder, seed)
    starts = {arm: adapters.pop(arm) for arm in comparison.starts if arm in adapters}
    found = []
    for first, second in combinations(adapters, 2):
        if comparison.start_of(first) != comparison.start_of(second):
            continue
        start = starts.get(comparison.start_of(first), default)
        base = base_weights(model_folder, adapters[first].base)
        if means := mean_agreement(agreement(adapters[first], adapters[second], base, start)):
            found.append(ArmsAgreement(seed, first, second, means))
    return found


def _adapters(comparison: Comparison, folder: Path, seed: int) -> dict[str, Adapter]:
    """The adapters with factors of the finished cells of a seed, by arm."""
    folders = {
        cell.arm: RunDir(folder / cell.run_dir).adapter
        for cell in comparison.cells
        if cell.seed == seed and cell.status is Status.DONE
    }
    loaded = {arm: Adapter.load(path) for arm, path in folders.items() if (path / CONFIG_FILE).is_file()}
    return {arm: adapter for arm, adapter in loaded.items() if has_factors(adapter)}
