"""The cells of a comparison: the runs, their settings and their order. This module starts nothing.

    init-SEED ─▶ REFERENCE-SEED (the first algorithm of `compare.arms`) ─▶ what it spent ─▶ every other ARM-SEED

`init` is the warm start from which every arm with that seed continues. If one of `compare.settings` has its own
`sft.steps`, the arms under each of them continue a start of their own, init.NAME-SEED. The reference runs for
`algo.iterations`. The compute it has spent at each of its points is the budget of the other arms, which evaluate and
end at the same amounts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpost.compare.design.types import INIT, is_start, row_of, settings_name_of, with_settings_name
from rlpost.config.arms import Arm
from rlpost.config.compose import defaults_under, with_settings
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoName, BudgetConfig, CompareConfig, Config, Task

_CONTRAST = re.compile(r"\s*(?P<arm>[\w.]+)\s*-\s*(?P<baseline>[\w.]+)\s*")
# An arm that has not spent its budget ends after this many times the reference's iterations.
AT_MOST = 20
SFT_AT_MOST = 1_000_000  # the same limit for SFT, in optimizer steps
# An SFT step costs a small part of an iteration, so SFT multiplies tracking.checkpoint_every by this.
SFT_CHECKPOINTS = 10


@dataclass(frozen=True)
class CellPlan:
    arm: str  # INIT, or one of `arms`
    seed: int
    needs: tuple[str, ...]  # names of the cells that must be done first

    @property
    def name(self) -> str:
        return cell_name(self.arm, self.seed)


def cell_name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def run_dir_of(folder: Path, name: str) -> Path:
    """The run directory of a cell, inside the comparison's folder."""
    return folder / "cells" / name


def quickened(cfg: Config) -> Config:
    """The configuration to run, shortened if `compare.quick` is set."""
    cfg = copy.deepcopy(cfg)
    if cfg.compare.quick:
        cfg.compare.seeds = cfg.compare.seeds[:1]
        cfg.algo.iterations = min(cfg.algo.iterations, cfg.compare.quick_iterations)
    return cfg


def arms(cfg: Config) -> tuple[str, ...]:
    """The arms: those of `compare.arms`, each with every one of `compare.settings` if there are some."""
    names = cfg.compare.settings or [None]
    return tuple(with_settings_name(arm, name) for name in names for arm in cfg.compare.arms)


def starts(cfg: Config) -> tuple[str, ...]:
    """INIT; or a start for each of `compare.settings`, if one of them has its own length of the warm start."""
    settings = cfg.compare.settings
    if not any("sft.steps" in each for each in settings.values()):
        return (INIT,)
    return tuple(with_settings_name(INIT, name) for name in settings)


def start_of(cfg: Config, arm: str) -> str:
    """The start from which an arm is trained."""
    own = with_settings_name(INIT, settings_name_of(arm))
    return own if own in starts(cfg) else INIT


def named_contrasts(cfg: Config) -> tuple[tuple[str, str], ...]:
    """(arm, baseline) of each of `compare.contrasts`. Two plain names are compared under each of `compare.settings`.

    A side may be no arm of the comparison; rlpost.validate.comparison refuses that. Raises ValueError for a text that
    is no difference of two names.
    """
    settings = cfg.compare.settings or [None]
    found = list[tuple[str, str]]()
    for text in cfg.compare.contrasts:
        match = _CONTRAST.fullmatch(text)
        if match is None:
            raise ValueError(text)
        sides = match["arm"], match["baseline"]
        if any(settings_name_of(side) for side in sides):
            found.append(sides)
        else:
            arm, baseline = sides
            found += [
                (with_settings_name(arm, name), with_settings_name(baseline, name)) for name in settings
            ]
    return tuple(dict.fromkeys(found))


def reference_arm(cfg: Config) -> str:
    """The first arm that is an algorithm; without one, the first that borrows its algorithm from the reference.

    Validation guarantees that there is one.
    """
    candidates = [arm for arm in arms(cfg) if row_of(arm).may_set_budget]
    return min(candidates, key=lambda arm: row_of(arm).algorithm is None)


def plan(cfg: Config) -> list[CellPlan]:
    """All cells, seed by seed; each comes after the cells that it needs."""
    cells, reference = [], reference_arm(cfg)
    for seed in cfg.compare.seeds:
        start = {arm: cell_name(start_of(cfg, arm), seed) for arm in arms(cfg)}
        first = cell_name(reference, seed)
        cells += [CellPlan(each, seed, ()) for each in starts(cfg)]
        cells.append(CellPlan(reference, seed, (start[reference],)))
        others = (arm for arm in arms(cfg) if arm != reference)
        cells += [CellPlan(arm, seed, (start[arm], first)) for arm in others]
    return cells


def settings_of(cfg: Config, cell: CellPlan, folder: Path, amounts: Sequence[float]) -> Config:
    """The whole configuration of a cell's run. `amounts`: the reference's compute, unused for the reference itself."""
    if is_start(cell.arm):
        return _init(cfg, cell, folder)
    cell_cfg = _common(learning_of(cfg, cell.arm), cell, folder)
    cell_cfg.eval.start = False  # init evaluates it
    before = cell_cfg.sft.steps  # the length of the warm start
    if before:
        cell_cfg.adapter = str(run_dir_of(folder, cell_name(start_of(cfg, cell.arm), cell.seed)) / "adapter")
    cell_cfg.task = row_of(cell.arm).task
    if cell_cfg.task is Task.sft:
        cell_cfg.sft.steps, cell_cfg.sft.skip = SFT_AT_MOST, cfg.sft.skip + before
        cell_cfg.tracking.checkpoint_every *= SFT_CHECKPOINTS
    else:
        cell_cfg.sft.steps = 0
        if cell_cfg.algo.expert_coef > 0:  # expert answers follow those of the warm start, as SFT's do
            cell_cfg.sft.skip += before
    if cell.arm == reference_arm(cfg):
        cell_cfg.eval.every = cfg.algo.iterations // cfg.compare.points
    else:
        cell_cfg.algo.iterations = AT_MOST * cfg.algo.iterations
        cell_cfg.budget = BudgetConfig(cfg.compare.match_on, list(amounts))
    return cell_cfg


def _init(cfg: Config, cell: CellPlan, folder: Path) -> Config:
    """The configuration of the warm start; without a warm start, of an evaluation of the start adapter."""
    name = settings_name_of(cell.arm)
    cell_cfg = _common(with_settings(cfg, cfg.compare.settings[name]) if name else cfg, cell, folder)
    cell_cfg.task = Task.sft if cell_cfg.sft.steps else Task.eval
    # The bare model is the same for every seed and every start.
    cell_cfg.eval.start = (cell.arm, cell.seed) == (starts(cfg)[0], cfg.compare.seeds[0])
    return cell_cfg


def learning_of(cfg: Config, arm: str) -> Config:
    """The comparison's configuration with the arm's algorithm, its named settings and those that define the arm."""
    row, name = row_of(arm), settings_name_of(arm)
    # Done first, because only the comparison's own configuration knows which settings the user named.
    changed = cfg if row.supervised else with_algorithm(cfg, _algorithm(cfg, row))
    named = {} if name is None else cfg.compare.settings[name]
    return with_settings(changed, {**named, **row.settings})


def _algorithm(cfg: Config, row: Arm) -> AlgoName:
    """The arm's algorithm, or that of the arm that sets the budget."""
    return row.algorithm or row_of(reference_arm(cfg)).algorithm or AlgoName.ppo


def _common(cfg: Config, cell: CellPlan, folder: Path) -> Config:
    cell_cfg = copy.deepcopy(cfg)
    cell_cfg.name, cell_cfg.seed = f"{cfg.name}-{cell.name}", cell.seed
    cell_cfg.output_dir, cell_cfg.resume = str(run_dir_of(folder, cell.name)), None
    cell_cfg.compare, cell_cfg.eval.every = CompareConfig(), 0
    return cell_cfg


def with_algorithm(cfg: Config, name: AlgoName) -> Config:
    """`cfg` with another algorithm and its defaults. Settings that the user named keep their values."""
    changed, new = copy.deepcopy(cfg), defaults_under(name)
    changing = TABLE[cfg.algo.name].defaults.keys() | TABLE[name].defaults.keys()
    for key in changing - set(cfg.compare.named):
        group, _, setting = key.partition(".")
        setattr(getattr(changed, group), setting, getattr(getattr(new, group), setting))
    changed.algo.name = name
    return changed
