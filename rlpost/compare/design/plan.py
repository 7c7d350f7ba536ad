"""The cells of a comparison: which runs, with which settings, in which order. Nothing is started here.

    init-SEED ─▶ REFERENCE-SEED (the first algorithm of `compare.arms`) ─▶ what it spent ─▶ every other ARM-SEED

`init` is the warm start, from which every arm with that seed goes on. The reference takes `algo.iterations`; what it
has spent at each of its points is the budget of the others, which evaluate at the same amounts and end there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpost.compare.design.types import INIT, SFT
from rlpost.config.compose import defaults_under
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoName, BudgetConfig, CompareConfig, Config, Task

AT_MOST = 20  # times as many iterations as the reference took end an arm that has not spent its budget
SFT_AT_MOST = 1_000_000  # supervised steps; as above
SFT_CHECKPOINTS = (
    10  # a supervised step costs a small part of an iteration: so many times tracking.checkpoint_every
)


@dataclass(frozen=True)
class CellPlan:
    arm: str  # INIT, SFT or an algorithm
    seed: int
    needs: tuple[str, ...]  # names of the cells that must be whole before

    @property
    def name(self) -> str:
        return cell_name(self.arm, self.seed)


def cell_name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def run_dir_of(folder: Path, name: str) -> Path:
    """Where a cell's run has its record, below the comparison's folder."""
    return folder / "cells" / name


def quickened(cfg: Config) -> Config:
    """The comparison that is run: `compare.quick` shortens it."""
    cfg = copy.deepcopy(cfg)
    if cfg.compare.quick:
        cfg.compare.seeds = cfg.compare.seeds[:1]
        cfg.algo.iterations = cfg.compare.quick_iterations
    return cfg


def reference_arm(cfg: Config) -> str:
    """The first arm that is an algorithm; validation has seen to it that there is one."""
    return next(arm for arm in cfg.compare.arms if arm != SFT)


def plan(cfg: Config) -> list[CellPlan]:
    """All cells, seed by seed, each after those it needs."""
    cells, reference = [], reference_arm(cfg)
    for seed in cfg.compare.seeds:
        start, first = cell_name(INIT, seed), cell_name(reference, seed)
        cells += [CellPlan(INIT, seed, ()), CellPlan(reference, seed, (start,))]
        others = (arm for arm in cfg.compare.arms if arm != reference)
        cells += [CellPlan(arm, seed, (start, first)) for arm in others]
    return cells


def settings_of(cfg: Config, cell: CellPlan, folder: Path, amounts: Sequence[float]) -> Config:
    """The whole configuration of a cell's run. `amounts`: what the reference spent; not read for the reference."""
    if cell.arm == INIT:
        return _init(cfg, cell, folder)
    # While the comparison's own settings tell what was named.
    algorithm = cfg if cell.arm == SFT else with_algorithm(cfg, AlgoName[cell.arm])
    cell_cfg = _common(algorithm, cell, folder)
    cell_cfg.eval.start = False  # the same for all arms: init has it
    if cfg.sft.steps:
        cell_cfg.adapter = str(run_dir_of(folder, cell_name(INIT, cell.seed)) / "adapter")
    if cell.arm == SFT:
        cell_cfg.task = Task.sft
        cell_cfg.sft.steps, cell_cfg.sft.skip = SFT_AT_MOST, cfg.sft.skip + cfg.sft.steps
        cell_cfg.tracking.checkpoint_every *= SFT_CHECKPOINTS
    else:
        cell_cfg.task, cell_cfg.sft.steps = Task.rl, 0
    if cell.arm == reference_arm(cfg):
        cell_cfg.eval.every = cfg.algo.iterations // cfg.compare.points
    else:
        cell_cfg.algo.iterations = AT_MOST * cfg.algo.iterations
        cell_cfg.budget = BudgetConfig(cfg.compare.match_on, list(amounts))
    return cell_cfg


def _init(cfg: Config, cell: CellPlan, folder: Path) -> Config:
    """The warm start; without one, an evaluation of what the arms start from."""
    cell_cfg = _common(cfg, cell, folder)
    cell_cfg.task = Task.sft if cfg.sft.steps else Task.eval
    cell_cfg.eval.start = cell.seed == cfg.compare.seeds[0]  # the bare model is the same for every seed
    return cell_cfg


def _common(cfg: Config, cell: CellPlan, folder: Path) -> Config:
    cell_cfg = copy.deepcopy(cfg)
    cell_cfg.name, cell_cfg.seed = f"{cfg.name}-{cell.name}", cell.seed
    cell_cfg.output_dir, cell_cfg.resume = str(run_dir_of(folder, cell.name)), None
    cell_cfg.compare, cell_cfg.eval.every = CompareConfig(), 0
    return cell_cfg


def with_algorithm(cfg: Config, name: AlgoName) -> Config:
    """`cfg` under another algorithm, whose defaults take the place of the old one's; what was named stays."""
    changed, new = copy.deepcopy(cfg), defaults_under(name)
    changing = TABLE[cfg.algo.name].defaults.keys() | TABLE[name].defaults.keys()
    for key in changing - set(cfg.compare.named):
        group, _, setting = key.partition(".")
        setattr(getattr(changed, group), setting, getattr(getattr(new, group), setting))
    changed.algo.name = name
    return changed
