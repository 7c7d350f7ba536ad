"""Reads the cells' run directories into the records of a comparison.

metrics.jsonl ─▶ compute spent    evaluations.jsonl ─▶ trajectories/eval-* ─▶ Evaluation    both ─▶ Point, Cell
trajectories/iteration-*.jsonl, examples.jsonl ─▶ the instances that the cell was trained on
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rlpost.compare.cells import CellFiles, Ended
from rlpost.compare.design.plan import CellPlan
from rlpost.compare.design.types import Cell, Evaluation, Point, Status, is_start, row_of
from rlpost.compare.retained import retained
from rlpost.compare.statistics.causes import last_outcome
from rlpost.config.schema import BudgetConfig, Config, Task
from rlpost.errors import OutputError
from rlpost.record import spectrum
from rlpost.record.compute import Compute, spent
from rlpost.record.metrics import goes_on_after_right, is_right, right_share
from rlpost.record.run_dir import RunDir, evaluation_name, read_trajectories, stage_number
from rlpost.record.summary import headline_decoding
from rlpost.types import Trajectory

NOTHING_SPENT = Compute(0.0, 0, 0.0, 0, 0)


@dataclass(frozen=True)
class Read:
    """A finished cell, read from its folder."""

    cell: Cell
    stepwise: bool  # whether any episode continued after a right step
    trained: frozenset[str]  # the instances it was trained on
    base: Mapping[str, Evaluation] | None  # the model before any training, if this cell evaluated it


def read_cell(plan: CellPlan, cfg: Config, folder: Path, parameters: int, points: int) -> Read:
    """Read the record of a finished cell; `cfg` is the configuration of its run.

    Raises OutputError if the record is damaged, does not have `points` points, or has them elsewhere in the budget.
    """
    run_dir = CellFiles(folder, plan.name).run_dir
    if is_start(plan.arm):
        last = "before" if cfg.task is Task.eval and cfg.adapter is None else "after"
        stages = {last: _last(_compute(run_dir, "step", parameters))}
    else:
        stages = _stages(run_dir, "step" if row_of(plan.arm).supervised else "iteration", parameters)
        if len(stages) != points:
            raise _off_budget(run_dir, f"it was evaluated {len(stages)} times after its start, not {points}")
        _refuse_other_amounts(run_dir, list(stages.values()), cfg.budget)
    shares = [0.0] if is_start(plan.arm) else [k / points for k in range(1, points + 1)]
    played = {stage: _episodes(run_dir, cfg, stage) for stage in stages}
    scored = zip(shares, stages.values(), map(_evaluations, played.values()), strict=True)
    cell = Cell(
        plan.arm,
        plan.seed,
        Status.DONE,
        str(run_dir.path.relative_to(folder)),
        points=tuple(Point(share, compute, evaluations) for share, compute, evaluations in scored),
        spectrum=None if (found := spectrum.read(run_dir.path)) is None else found.totals(),
        retention=()
        if is_start(plan.arm)
        else retained(run_dir, dict(zip(stages, shares, strict=True)), _evaluation_in),
    )
    has_base = is_start(plan.arm) and cfg.eval.start and cfg.adapter is None
    base = _evaluations(_episodes(run_dir, cfg, "before")) if has_base else None
    every = (t for variants in played.values() for episodes in variants.values() for t in episodes)
    return Read(cell, goes_on_after_right(every), trained_on(run_dir), base)


def _refuse_other_amounts(run_dir: RunDir, spent: Sequence[Compute], budget: BudgetConfig) -> None:
    """Raises OutputError if the amounts spent at the points differ from the budget's by over half a point's share."""
    for found, amount in zip(spent, budget.amounts, strict=False):  # the reference has no amounts
        measured = getattr(found, budget.measure.value)
        if abs(measured - amount) > budget.amounts[0] / 2:
            what = f"{measured:.4g} {budget.measure.value} where the others spent {amount:.4g}"
            raise _off_budget(run_dir, f"it was evaluated after {what}")


def _off_budget(run_dir: RunDir, found: str) -> OutputError:
    return OutputError(
        f"{run_dir.path}\n  reason: {found}: its training ended before its budget was spent, or one step spent more"
        " than a point's share\n  remedy: fewer compare.points, or more iterations"
    )


def unread(plan: CellPlan, ended: Ended | None) -> Cell:
    """A cell without results: failed, or not run yet."""
    run_dir = f"cells/{plan.name}"
    if ended is None:
        return Cell(plan.arm, plan.seed, Status.MISSING, run_dir)
    return Cell(plan.arm, plan.seed, Status.FAILED, run_dir, ended.error)


def trained_on(run_dir: RunDir) -> frozenset[str]:
    """Every instance of the run's supervised examples and training episodes, from its record."""
    instances = {instance for line in run_dir.read_examples() for instance in line["instances"]}
    for path in run_dir.trajectories.glob("iteration-*.jsonl"):
        with path.open("rb") as file:
            instances |= {json.loads(line)["instance"] for line in file}
    return frozenset(instances)


def evaluated_on(cell: Cell) -> frozenset[str]:
    """The instances of a cell's evaluations."""
    return frozenset(i for point in cell.points for e in point.evaluations.values() for i in e.instances)


def evaluation_of(episodes: Sequence[Trajectory]) -> Evaluation:
    """One variant's episodes as one Evaluation."""
    return Evaluation(
        instances=tuple(t.instance for t in episodes),
        successes=tuple(t.success for t in episodes),
        outcomes=tuple(map(last_outcome, episodes)),
        solved_at=tuple(_solved_at(t) for t in episodes),
        step_accuracy=right_share(episodes),
    )


def without_step_accuracy(cell: Cell) -> Cell:
    """The cell without step accuracies. They say nothing new if the first right step solves the episode."""

    def without(point: Point) -> Point:
        plain = {name: replace(e, step_accuracy=None) for name, e in point.evaluations.items()}
        return replace(point, evaluations=plain)

    return replace(cell, points=tuple(map(without, cell.points)))


def _solved_at(episode: Trajectory) -> int:
    """The attempts of the step that needed most; 0 if the episode was not solved."""
    if not episode.success:
        return 0
    runs = groupby(episode.turns, key=is_right)
    return 1 + max((len(list(turns)) for right, turns in runs if not right), default=0)


def _episodes(run_dir: RunDir, cfg: Config, stage: str) -> dict[str, list[Trajectory]]:
    files, decoding = run_dir.evaluations(), headline_decoding(cfg.eval)

    def read(variant: str) -> list[Trajectory]:
        path = files.get((stage, variant, decoding))
        if path is None:
            expected = run_dir.trajectories_file(evaluation_name(stage, variant, decoding))
            raise OutputError(
                f"{expected}\n  reason: the evaluation is not there\n  remedy: delete the cell's folder"
            )
        return _named_episodes(path)

    return {variant: read(variant) for variant in cfg.eval_variants}


def _named_episodes(path: Path) -> list[Trajectory]:
    """The episodes of a file. Raises OutputError if one cannot be paired with another cell's."""
    episodes = read_trajectories(path)
    if not all(episode.instance for episode in episodes):
        raise OutputError(
            f"{path}\n  reason: the environment failed before it named the instance of an episode, which"
            " therefore cannot be paired\n  remedy: delete the cell's folder, and it is run again"
        )
    return episodes


def _evaluation_in(path: Path) -> Evaluation:
    return evaluation_of(_named_episodes(path))


def _evaluations(played: Mapping[str, Sequence[Trajectory]]) -> dict[str, Evaluation]:
    return {variant: evaluation_of(episodes) for variant, episodes in played.items()}


def _stages(run_dir: RunDir, key: str, parameters: int) -> dict[str, Compute]:
    """The evaluations during training and at the end, by stage, with the compute spent until then."""
    compute = _compute(run_dir, key, parameters)
    numbers = {stage: stage_number(stage) for stage, _, _ in run_dir.evaluations()}
    between = sorted((number, stage) for stage, number in numbers.items() if number is not None)
    return {**{stage: compute[number] for number, stage in between}, "after": _last(compute)}


def _compute(run_dir: RunDir, key: str, parameters: int) -> dict[int, Compute]:
    """The compute spent after each step (iteration)."""
    lines: list[dict[str, Any]] = [line for line in run_dir.read_metrics() if key in line]
    return dict(zip((line[key] for line in lines), spent(lines, parameters), strict=True))


def _last(compute: Mapping[int, Compute]) -> Compute:
    return compute[max(compute)] if compute else NOTHING_SPENT
