"""The findings in words. A claim is made only if a simultaneous interval excludes zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from rlpost.compare.design.types import (
    UNITS,
    Cell,
    Comparison,
    Role,
    Status,
    is_start,
    row_name_of,
    row_of,
    settings_name_of,
)
from rlpost.compare.statistics.causes import BROKEN, Causes, measures_memorization
from rlpost.compare.statistics.directions import Change, ContrastResult, Direction, held_out_change
from rlpost.compare.statistics.estimates import Success, contrasts
from rlpost.compare.statistics.intervals import Interval


class Question(StrEnum):
    MEMORIZED = "did SFT memorize?"  # asked of each supervised arm
    GENERALIZED = "did RL generalize?"  # asked of each other arm
    AHEAD = "which of two arms is ahead?"  # asked of an arm and one of its baselines, on held-out rules


class Answer(StrEnum):
    YES = "yes"
    IN_PART = "in part"
    NO = "no"
    MIXED = "mixed"
    UNCLEAR = "unclear"  # no interval excludes zero
    UNKNOWN = "unknown"  # nothing to compare


@dataclass(frozen=True)
class Finding:
    """One statement of the report. Remarks answer no question and have neither `question` nor `answer`."""

    headline: str  # a sentence
    details: str = ""  # further sentences: the intervals behind the headline
    question: Question | None = None
    answer: Answer | None = None

    def __str__(self) -> str:
        return f"{self.headline} {self.details}".rstrip()


Answers = Mapping[Change, tuple[Answer, str]]

_UNCLEAR = (Answer.UNCLEAR, "Unclear: no held-out rule shows a change that can be told from zero")
_YES_MEMORIZED = "it gained on the trained rule and lost on held-out ones"
_NOT_MEMORIZED = (Answer.NO, "No: it gained on held-out rules and clearly lost on none")
_MEMORIZED: Answers = {
    Change.UP: _NOT_MEMORIZED,
    Change.PARTLY_UP: _NOT_MEMORIZED,
    Change.DOWN: (Answer.YES, f"Yes: {_YES_MEMORIZED}"),
    Change.PARTLY_DOWN: (Answer.IN_PART, f"In part: {_YES_MEMORIZED}"),
    Change.MIXED: (Answer.MIXED, "Mixed: it lost on some held-out rules and gained on others"),
    Change.UNCLEAR: _UNCLEAR,
    Change.UNKNOWN: (Answer.UNKNOWN, "Unknown: no seed has both {arm} and its start"),
}
_NOT_LEARNED = (
    Answer.NO,
    "It lost on held-out rules, but without a clear gain on the trained one: that is not memorizing",
)
_NOT_GENERALIZED = (Answer.NO, "No: it lost on held-out rules and clearly gained on none")
_GENERALIZED: Answers = {
    Change.UP: (Answer.YES, "Yes: it gained on every held-out rule"),
    Change.PARTLY_UP: (Answer.IN_PART, "In part: it gained on some held-out rules"),
    Change.DOWN: _NOT_GENERALIZED,
    Change.PARTLY_DOWN: _NOT_GENERALIZED,
    Change.MIXED: (Answer.MIXED, "Mixed: it gained on some held-out rules and lost on others"),
    Change.UNCLEAR: _UNCLEAR,
    Change.UNKNOWN: (Answer.UNKNOWN, "Unknown: no seed has both {arm} and its start"),
}
_AHEAD: Answers = {
    Change.UP: (Answer.YES, "{arm} is ahead on every held-out rule, and behind on none for certain"),
    Change.PARTLY_UP: (
        Answer.IN_PART,
        "{arm} is ahead on some held-out rules, and behind on none for certain",
    ),
    Change.DOWN: (Answer.NO, "{baseline} is ahead on every held-out rule, and behind on none for certain"),
    Change.PARTLY_DOWN: (
        Answer.NO,
        "{baseline} is ahead on some held-out rules, and behind on none for certain",
    ),
    Change.MIXED: (Answer.MIXED, "{arm} is ahead on some held-out rules, {baseline} on others"),
    Change.UNCLEAR: (Answer.UNCLEAR, "no held-out rule tells them apart"),
    Change.UNKNOWN: (Answer.UNKNOWN, "unknown: no seed has both"),
}


def arm_name(arm: str) -> str:
    """The arm in a sentence: `PPO`, or `PPO (rank_8)` if the comparison has several settings."""
    settings = settings_name_of(arm)
    name = "the start" if is_start(arm) else row_of(arm).label
    return name if settings is None else f"{name} ({settings})"


def points(interval: Interval) -> str:
    """A difference in words: `+3.5 points [-1.2, +8.2]`."""
    return f"{100 * interval.value:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def problems(comparison: Comparison, rows: Sequence[ContrastResult]) -> Iterator[str]:
    """Every cell that is not done, then what each contrast lacks because of them."""
    cells = {(cell.arm, cell.seed): cell for cell in comparison.cells}
    for arm in (*comparison.starts, *comparison.arms):
        for seed in comparison.seeds:
            cell = cells.get((arm, seed))
            if cell is None or cell.status is Status.MISSING:
                yield f"MISSING: {arm}, seed {seed} has not been run; no number here has it."
            elif cell.status is Status.FAILED:
                reason = " ".join((cell.error or "no error was recorded").split())
                yield f"FAILED: {arm}, seed {seed}; no number here has it. It ended with: {reason}"
    for cell in comparison.cells:
        yield from _broken(cell)
    for arm, baseline in contrasts(comparison):
        yield from _left_out(
            arm, baseline, [row for row in rows if (row.arm, row.baseline) == (arm, baseline)]
        )


def _broken(cell: Cell) -> Iterator[str]:
    """The number of episodes that the environment ended, by variant; they say nothing about the policy."""
    for variant, evaluation in cell.points[-1].evaluations.items() if cell.points else ():
        if count := sum(outcome in BROKEN for outcome in evaluation.outcomes):
            yield (
                f"BROKEN: the environment ended {count} of {len(evaluation.outcomes)} episodes of {cell.arm}, seed"
                f" {cell.seed}, on {variant}; they count as not solved."
            )


def _left_out(arm: str, baseline: str, rows: Sequence[ContrastResult]) -> Iterator[str]:
    differences = [row.difference for row in rows if row.difference is not None]
    if not differences:
        yield f"NOT COMPARED: {arm} - {baseline}: no seed has both."
        return
    seeds = sorted({seed for each in differences for seed in each.left_out})
    if seeds:
        left = ", ".join(map(str, seeds))
        kept = min(len(each.seeds) for each in differences)
        yield f"FEWER SEEDS: {arm} - {baseline} is of {_seeds(kept)}; left out, as one of the two is missing: {left}."


def answers(comparison: Comparison, rows: Sequence[ContrastResult]) -> Iterator[Finding]:
    """The answers to: did each supervised arm memorize, did each RL arm generalize, and which arm is ahead?"""
    if not any(info.held_out for info in comparison.variants.values()):
        yield Finding(
            "No held-out rule was evaluated, so nothing can be said of memorization or generalization."
        )
        return
    for arm in sorted(comparison.arms, key=lambda name: not row_of(name).supervised):
        mine = [row for row in rows if (row.arm, row.baseline) == (arm, comparison.start_of(arm))]
        yield _did_it_memorize(arm, mine) if row_of(arm).supervised else _did_it_generalize(arm, mine)
    for arm, baseline in contrasts(comparison):
        mine = [row for row in rows if (row.arm, row.baseline) == (arm, baseline)]
        if row_name_of(arm) == row_name_of(baseline):
            yield Finding(
                f"{arm_name(arm)} against {arm_name(baseline)}{_in_one_seed(mine)}:", _details(mine)
            )
        elif not is_start(baseline):
            yield _who_is_ahead(arm, baseline, mine, comparison.matched_on)


def _did_it_memorize(arm: str, rows: Sequence[ContrastResult]) -> Finding:
    change = held_out_change(rows)
    answer, text = _MEMORIZED[change]
    learned = any(row.role is Role.TRAINED and row.direction is Direction.UP for row in rows)
    if change in (Change.DOWN, Change.PARTLY_DOWN) and not learned:
        answer, text = _NOT_LEARNED
    headline = f"Did {arm_name(arm)} memorize? {text.format(arm=arm_name(arm))}{_in_one_seed(rows)}."
    return Finding(headline, _details(rows), Question.MEMORIZED, answer)


def _did_it_generalize(arm: str, rows: Sequence[ContrastResult]) -> Finding:
    answer, text = _GENERALIZED[held_out_change(rows)]
    headline = f"Did RL ({arm_name(arm)}) generalize? {text.format(arm=arm_name(arm))}{_in_one_seed(rows)}."
    return Finding(headline, _details(rows), Question.GENERALIZED, answer)


def _who_is_ahead(arm: str, baseline: str, rows: Sequence[ContrastResult], matched_on: str) -> Finding:
    answer, text = _AHEAD[held_out_change(rows)]
    told, matched = (
        text.format(arm=arm_name(arm), baseline=arm_name(baseline)),
        UNITS.get(matched_on, matched_on),
    )
    headline = (
        f"{arm_name(arm)} against {arm_name(baseline)}, at equal {matched}: {told}{_in_one_seed(rows)}."
    )
    return Finding(headline, _details(rows), Question.AHEAD, answer)


def _in_one_seed(rows: Sequence[ContrastResult]) -> str:
    paired = {len(row.difference.seeds) for row in rows if row.difference is not None}
    return ", in the one training seed that there is" if paired == {1} else ""


def _details(rows: Sequence[ContrastResult]) -> str:
    """The interval of every variant, the trained one first."""
    told = []
    for row in sorted(rows, key=lambda row: row.role.place):
        where = f"{row.variant} ({row.role.value})"
        told.append(
            f"{where}: " + ("no pair" if row.difference is None else points(row.difference.simultaneous))
        )
    return "; ".join(told) + "."


def certainty(
    comparison: Comparison, rows: Sequence[ContrastResult], ends: Sequence[Success]
) -> Iterator[Finding]:
    """How certain the findings are: what the intervals cover, and which effects they are too wide to show."""
    differences = [row.difference for row in rows if row.difference is not None]
    if not differences:
        return
    widths = [(each.simultaneous.high - each.simultaneous.low) / 2 for each in differences]
    fewest = min(len(each.seeds) for each in differences)
    instances = sorted({each.distinct for each in ends})
    played = f"{instances[0]}" if len(instances) == 1 else f"{instances[0]} to {instances[-1]}"
    variants, width = len(comparison.variants), 100 * median(widths)
    yield Finding(
        f"How sure: the brackets hold for all {variants} variants of a contrast at once with 95% confidence.",
        f"They rest on {_seeds(fewest)} and {played} distinct evaluation instances a variant. The typical one is"
        f" {width:.1f} points to either side; differences smaller than that would mostly go unseen.",
    )
    if fewest == 1:
        yield Finding(
            "ONE SEED: where a contrast has a single seed, its brackets speak of other evaluation instances only.",
            "Another training seed may give another answer, and nothing here says how different.",
        )


def memorization(comparison: Comparison, ends: Sequence[Causes]) -> Iterator[Finding]:
    """The share of failures that apply the trained rule, on each held-out rule where this happens.

    Yields nothing if the environment cannot tell such failures from others.
    """
    seen = False
    for variant, info in comparison.variants.items():
        here = [each for each in ends if each.variant == variant and each.memorization is not None]
        if info.held_out and any(each.memorization and each.memorization.value > 0 for each in here):
            seen = True
            told = (
                f"{arm_name(each.arm)} {percent(each.memorization)}" for each in here if each.memorization
            )
            yield Finding(f"Failures on {variant} that are the trained rule applied: {', '.join(told)}.")
    if ends and not seen and measures_memorization(comparison):
        yield Finding("No failure on a held-out rule was the trained rule applied.")


def fake_rules(comparison: Comparison, ends: Sequence[Success]) -> Iterator[Finding]:
    """How often each arm keeps to the trained rule although the prompt states another one."""
    for variant, info in comparison.variants.items():
        here = [each for each in ends if each.variant == variant]
        if info.role is Role.FAKE_RULE and here:
            told = ", ".join(f"{arm_name(each.arm)} {percent(each.rate)}" for each in here)
            yield Finding(
                f"Kept to the trained rule on {variant}, though the prompt states another: {told}.",
                "A model that reads the rule is near zero there; one that learned it by heart is not.",
            )


def turns(comparison: Comparison, ends: Sequence[Success]) -> Iterator[Finding]:
    """How much success the verification turns after the first add."""
    gains: dict[str, list[float]] = {}
    for each in ends:
        if comparison.variants[each.variant].held_out:
            gains.setdefault(each.arm, []).append(each.by_turn[-1] - each.by_turn[0])
    if any(gain > 0 for of_seeds in gains.values() for gain in of_seeds):
        told = (
            f"{arm_name(arm)} {100 * sum(of_seeds) / len(of_seeds):+.1f}" for arm, of_seeds in gains.items()
        )
        yield Finding(
            f"Verification turns after the first add, in points, mean of the held-out rules: {', '.join(told)}."
        )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
