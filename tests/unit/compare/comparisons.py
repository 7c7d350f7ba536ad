"""Comparisons for tests: from tables of seeds by instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlpost.compare.design.types import (
    Cell,
    ComparedVariant,
    Comparison,
    Evaluation,
    Point,
    Role,
    Status,
    is_start,
)
from rlpost.envs import registry
from rlpost.record.compute import Compute

Table = Sequence[Sequence[bool | int]]  # seeds by instances


def evaluation(solved: Sequence[bool | int], **fields: Any) -> Evaluation:
    n = len(solved)
    given = {
        "instances": tuple(f"deal {i}" for i in range(n)),
        "successes": tuple(map(bool, solved)),
        "outcomes": tuple("CORRECT" if each else "WRONG_VALUE" for each in solved),
        "solved_at": tuple(int(each) for each in solved),
    }
    return Evaluation(**(given | fields))


def done(arm: str, seed: int, points: Mapping[float, Mapping[str, Evaluation]]) -> Cell:
    scored = tuple(Point(share, Compute(1e9 * share, 1, 1.0), each) for share, each in points.items())
    return Cell(arm, seed, Status.DONE, f"cells/{arm}-{seed}", points=scored)


def failed(arm: str, seed: int) -> Cell:
    return Cell(arm, seed, Status.FAILED, f"cells/{arm}-{seed}", error="LearnerError: loss not finite")


def missing(arm: str, seed: int) -> Cell:
    return Cell(arm, seed, Status.MISSING, f"cells/{arm}-{seed}")


def comparison(
    cells: Sequence[Cell], seeds: Sequence[int], variants: Sequence[str], **fields: Any
) -> Comparison:
    """The first variant is the trained one."""
    arms = tuple(dict.fromkeys(cell.arm for cell in cells if not is_start(cell.arm)))
    given = {
        "name": "test",
        "env": "generalpoints",
        "model": "tiny",
        "train_variant": variants[0],
        "variants": {name: ComparedVariant(Role.HELD_OUT, f"about {name}") for name in variants}
        | {variants[0]: ComparedVariant(Role.TRAINED, f"about {variants[0]}")},
        "arms": arms,
        "seeds": tuple(seeds),
        "matched_on": "flops",
        "cells": tuple(cells),
        "notes": {},
        "causes": registry.causes("generalpoints"),
    }
    return Comparison(**(given | fields))


def of_tables(tables: Mapping[str, Mapping[str, Table]], **fields: Any) -> Comparison:
    """`tables[arm][variant]`: those of starts are at share 0, the others' at share 1."""
    shares = {arm: 0.0 if is_start(arm) else 1.0 for arm in tables}
    variants = list(next(iter(tables.values())))
    seeds = range(len(next(iter(next(iter(tables.values())).values()))))
    cells = [
        done(arm, seed, {shares[arm]: {v: evaluation(np.asarray(t)[seed].tolist()) for v, t in each.items()}})
        for arm, each in tables.items()
        for seed in seeds
    ]
    return comparison(cells, list(seeds), variants, **fields)
