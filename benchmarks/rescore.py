"""Evaluates a finished comparison again: the same adapters with another `eval.seed` and more episodes.

    python -m rlpost.run experiment=generalpoints_ppo task=eval adapter=COMPARISON/cells/ARM-SEED/adapter \\
        eval.seed=7 eval.episodes=640 eval.greedy=false output_dir=EVALUATIONS/ARM-SEED     # for every cell
    python -m benchmarks.rescore COMPARISON EVALUATIONS [--greedy]

Writes results.json, report.html and report.md to EVALUATIONS, for the ends of the arms only, and prints the findings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlpost.compare import results
from rlpost.compare.design.types import Cell, ComparedVariant, Comparison, Evaluation
from rlpost.compare.reading import evaluated_on, evaluation_of, trained_on
from rlpost.compare.report import page
from rlpost.compare.report.findings import findings
from rlpost.envs import registry
from rlpost.record.run_dir import RunDir, read_trajectories


def rescored(comparison: Comparison, folder: Path, decoding: str) -> Comparison:
    """The comparison, with the evaluations in `folder` in place of its own. Raises OutputError for a damaged record."""
    cells = tuple(_rescored(cell, folder, decoding) for cell in comparison.cells)
    scored = {name for cell in cells for name in cell.points[-1].evaluations}
    # The record does not have the environment's arguments, so variants that they define are found in the comparison.
    known = {
        each.name: ComparedVariant.of(each, comparison.train_variant)
        for each in registry.variants(comparison.env)
    }
    variants = {name: each for name, each in {**known, **comparison.variants}.items() if name in scored}
    notes = {**comparison.notes, "answers": f"{decoding}, scored again after the comparison"}
    return replace(comparison, cells=cells, variants=variants, notes=notes, base=None)


def _rescored(cell: Cell, folder: Path, decoding: str) -> Cell:
    run_dir = RunDir(folder / f"{cell.arm}-{cell.seed}")
    evaluations: Mapping[str, Evaluation] = {
        variant: evaluation_of(read_trajectories(path))
        for (_, variant, decoded), path in run_dir.evaluations().items()
        if decoded == decoding
    }
    points = (replace(cell.points[-1], evaluations=evaluations),)
    return replace(cell, run_dir=f"{cell.arm}-{cell.seed}", points=points)


def trained_and_scored(comparison: Comparison, folder: Path, found: Comparison) -> frozenset[str]:
    """The instances of `found`'s evaluations on which a cell of the comparison in `folder` was trained."""
    trained = frozenset().union(*(trained_on(RunDir(folder / cell.run_dir)) for cell in comparison.cells))
    return trained & frozenset().union(*map(evaluated_on, found.cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path)
    parser.add_argument("evaluations", type=Path)
    parser.add_argument("--greedy", action="store_true", help="the greedy answers, not the sampled ones")
    args = parser.parse_args()
    decoding = "greedy" if args.greedy else "sampled"
    comparison = results.read(args.comparison / results.FILE)
    found = rescored(comparison, args.evaluations, decoding)
    if both := trained_and_scored(comparison, args.comparison, found):
        parser.error(f"{len(both)} evaluation instances were trained on, such as {min(both)}")
    results.write(found, args.evaluations)
    print(*findings(found).sentences, sep="\n")
    print(page.write(found, args.evaluations))


if __name__ == "__main__":
    main()
