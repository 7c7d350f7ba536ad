"""The records of a comparison: cells produce them; statistics and report read them.

    Comparison ─ Cell (arm, seed) ─ Point (a share of the compute budget) ─ Evaluation (one variant)

Evaluations of one variant hold the same instances in the same order in every cell, so they can be paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from rlpost.config.arms import SFT, TABLE, Arm
from rlpost.config.keys import did_you_mean
from rlpost.envs.base import VariantInfo, has_fake_rule, has_own_rule
from rlpost.errors import ComparisonError
from rlpost.record.compute import Compute

# The pseudo-arm from which every other arm starts: the warm-started adapter, evaluated at its only point. Settings with
# warm starts of their own have one each: init.NAME.
INIT = "init"
_AND = "."  # between an arm's name in the table and the name of its settings


def with_settings_name(name: str, settings: str | None) -> str:
    """The name of an arm: that of its row in the table, and the name of its settings if the comparison has several."""
    return name if settings is None else f"{name}{_AND}{settings}"


def row_name_of(arm: str) -> str:
    """INIT, or a name of the table of arms (rlpost/config/arms.py)."""
    return arm.partition(_AND)[0]


def is_start(arm: str) -> bool:
    """Whether this is INIT, or the start of the arms under some settings."""
    return row_name_of(arm) == INIT


def row_of(arm: str) -> Arm:
    """The arm's row in the table. Raises ComparisonError if it has none, as in a record of another version."""
    name = row_name_of(arm)
    if name not in TABLE:
        raise ComparisonError(f"there is no arm {name}. {did_you_mean(name, list(TABLE))}".rstrip())
    return TABLE[name]


def baselines_of(arm: str) -> list[str]:
    """The arms with which the report compares this one under the same settings, besides INIT.

    SFT, unless the arm is a control, and the arm that it varies.
    """
    row, settings = row_of(arm), settings_name_of(arm)
    names = [*([] if row.control else [SFT]), *([] if row.varies is None else [row.varies])]
    return [baseline for name in names if (baseline := with_settings_name(name, settings)) != arm]


def settings_name_of(arm: str) -> str | None:
    """The name of the arm's settings; None if it has the comparison's own."""
    return arm.partition(_AND)[2] or None


UNITS = {
    "flops": "FLOPs",
    "tokens": "tokens",
    "device_seconds": "device seconds",
    "rollouts": "rollouts and expert examples",
    "correct_rollouts": "correct rollouts and expert examples",
}
"""The names of the fields of `Compute` in reports."""


class Status(StrEnum):
    DONE = "done"
    # The run ended with an error, which the report shows; a mean never leaves it out silently.
    FAILED = "failed"
    MISSING = "missing"  # not run yet


@dataclass(frozen=True)
class Evaluation:
    """One policy on one variant. Each of the four tuples has one entry per instance."""

    instances: tuple[str, ...]
    successes: tuple[bool, ...]
    outcomes: tuple[str, ...]  # the last turn's outcome, e.g. CORRECT, RULE_MISREAD
    solved_at: tuple[int, ...]  # attempts (from 1) taken by the step that needed most; 0: not solved
    # Share of right steps, if an episode has several (navigation).
    step_accuracy: float | None = None


@dataclass(frozen=True)
class Point:
    # Share of the reference's iterations, whose compute is the budget: 0 is the common start, 1 the end.
    share: float
    compute: Compute
    evaluations: Mapping[str, Evaluation]  # by variant


@dataclass(frozen=True)
class Retained:
    """What one policy can do that it was not trained for, and how far it is from the start; docs/retention.md."""

    share: float  # as of a Point; 0 is the arm's start
    evaluations: Mapping[str, Evaluation]  # by variant of retention.env
    text: float | None  # loss on retention.text, nats per token
    kl: Mapping[str, float]  # by the KEY of retention/kl/KEY in metrics.jsonl; empty if it was not measured


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. `points` is empty unless the cell is done."""

    arm: str  # INIT, sft, ppo, grpo, ...
    seed: int
    status: Status
    run_dir: str  # relative to the comparison's folder
    error: str | None = None
    points: tuple[Point, ...] = ()
    # Totals of its spectrum.json (rlpost.record.spectrum); None: it has none.
    spectrum: Mapping[str, float] | None = None
    retention: tuple[Retained, ...] = ()  # of an arm that measured it: its start, then its points


@dataclass(frozen=True)
class ArmsAgreement:
    """How the updates of two arms with one seed agree, as means over modules, since the seed's init."""

    seed: int
    first: str
    second: str
    figures: Mapping[str, float]  # rlpost.record.spectrum.mean_agreement


class Role(StrEnum):
    """How a variant relates to the training of the arms."""

    TRAINED = "trained"
    NOT_TRAINED = "not trained"  # could have been trained on, but was not
    SAME_RULE = "trained rule elsewhere"  # held out by its instances: other cities, longer routes
    HELD_OUT = "held out"  # its rule was never trained on
    FAKE_RULE = "fake rule"  # another rule is stated, and the trained one scores: success is keeping to that

    @property
    def place(self) -> int:
        """The position in listings: the order of the members above."""
        return tuple(Role).index(self)


@dataclass(frozen=True)
class ComparedVariant:
    role: Role
    summary: str  # what the variant tests

    @staticmethod
    def of(variant: VariantInfo, train_variant: str) -> ComparedVariant:
        """The variant of an environment, in a comparison that trains on `train_variant`."""
        return ComparedVariant(_role_of(variant, train_variant), variant.summary)

    @property
    def held_out(self) -> bool:
        return self.role is Role.HELD_OUT


def _role_of(variant: VariantInfo, train_variant: str) -> Role:
    if variant.name == train_variant:
        return Role.TRAINED
    if has_fake_rule(variant):
        return Role.FAKE_RULE
    if not variant.held_out:
        return Role.NOT_TRAINED
    return Role.HELD_OUT if has_own_rule(variant) else Role.SAME_RULE


@dataclass(frozen=True)
class Comparison:
    name: str
    env: str
    model: str
    train_variant: str
    variants: Mapping[str, ComparedVariant]
    arms: tuple[str, ...]  # without starts
    seeds: tuple[int, ...]
    matched_on: str  # a key of UNITS
    cells: tuple[Cell, ...]
    # Facts to print: command, disjointness counts, parameters, adapter's share, versions.
    notes: Mapping[str, str]
    # The cause of each outcome, as the environment declares them; empty if it declares none.
    causes: Mapping[str, str]
    # The model before any training, by variant; None: not evaluated.
    base: Mapping[str, Evaluation] | None = None
    agreements: tuple[ArmsAgreement, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()  # (arm, baseline) of compare.contrasts

    @property
    def starts(self) -> tuple[str, ...]:
        """INIT, or the starts of settings that have their own, in the order of the settings."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells if is_start(cell.arm))) or (INIT,)

    def start_of(self, arm: str) -> str:
        """The start from which an arm was trained."""
        own = with_settings_name(INIT, settings_name_of(arm))
        return own if own in self.starts else INIT
