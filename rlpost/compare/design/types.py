"""The records of a comparison: what the cells leave, and what statistics and report read.

    Comparison ─ Cell (arm, seed) ─ Point (a share of the compute budget) ─ Evaluation (one variant)

Evaluations of one variant hold the same instances in the same order in every cell, so they can be paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from rlpost.record.compute import Compute

INIT = (
    "init"  # the pseudo-arm that every other starts from: the warm-started adapter, scored at its only point
)
SFT = "sft"  # the arm that is no algorithm
UNITS = {"flops": "FLOPs", "tokens": "tokens", "device_seconds": "device seconds"}
"""The fields of `Compute`, in words."""


class Status(StrEnum):
    DONE = "done"
    FAILED = "failed"  # ended with an error, which the report shows; never left out of a mean silently
    MISSING = "missing"  # not run yet


@dataclass(frozen=True)
class Evaluation:
    """One policy on one variant; the four tuples have one entry an instance."""

    instances: tuple[str, ...]
    successes: tuple[bool, ...]
    outcomes: tuple[str, ...]  # of the last turn, e.g. CORRECT, RULE_MISREAD
    solved_at: tuple[int, ...]  # attempts, from 1, that the step took which took most; 0: not solved
    step_accuracy: float | None = None  # share of right steps, where an episode has several (navigation)


@dataclass(frozen=True)
class Point:
    share: (
        float  # of the reference's iterations, whose compute is the budget: 0 is the common start, 1 the end
    )
    compute: Compute
    evaluations: Mapping[str, Evaluation]  # by variant


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. `points` is empty unless the cell is done."""

    arm: str  # INIT, sft, ppo, grpo, ...
    seed: int
    status: Status
    run_dir: str  # relative to the comparison's folder
    error: str | None = None
    points: tuple[Point, ...] = ()


class Role(StrEnum):
    """What a variant was to the arms."""

    TRAINED = "trained"
    NOT_TRAINED = "not trained"  # might have been
    SAME_RULE = "trained rule elsewhere"  # held out for its instances: other cities, longer routes
    HELD_OUT = "held out"  # a rule that nothing was trained on

    @property
    def place(self) -> int:
        """Where a listing has it: in the order above."""
        return tuple(Role).index(self)


@dataclass(frozen=True)
class ComparedVariant:
    role: Role
    summary: str  # what it tests

    @property
    def held_out(self) -> bool:
        return self.role is Role.HELD_OUT


@dataclass(frozen=True)
class Comparison:
    name: str
    env: str
    model: str
    train_variant: str
    variants: Mapping[str, ComparedVariant]
    arms: tuple[str, ...]  # without INIT
    seeds: tuple[int, ...]
    matched_on: str  # flops, tokens or device_seconds
    cells: tuple[Cell, ...]
    notes: Mapping[
        str, str
    ]  # facts to print: command, disjointness counts, parameters, adapter's share, versions
    causes: Mapping[str, str]  # of the environment's outcomes, as it declares them; empty: it does not
    base: Mapping[str, Evaluation] | None = None  # the model as it came, by variant; None: not evaluated
