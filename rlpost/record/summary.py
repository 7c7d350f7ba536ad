"""Reads summary.json: the stages and variants in it, and the conclusions that their intervals allow.

    {"eval": {STAGE: {VARIANT: {n, success, low, high, DECODING: rlpost.record.metrics.evaluation(...)}}},
     "variants": {VARIANT: {"held_out": bool, "summary": str}}, "train_variant": VARIANT, ...}

A variant with a fake rule (rlpost.envs.base.has_fake_rule) also has "fake_rule": true.

STAGE is before (the bare model), warm (after the warm start) or after; only stages that were evaluated are present.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlpost.config.schema import EvalConfig

STAGES = ("before", "warm", "after")  # the bare model, the adapter that training starts from, the end
DECODINGS = ("greedy", "sampled")
AT_K = {"pass_at": "pass@", "majority_at": "majority@"}  # keys of an evaluation, and the names shown for them
MISSING = "-"
HELD_OUT = "held_out/"  # prefix of the keys of a metrics line that measured the loss on held-out answers
UNPLAYED = {
    "context_full": "outgrew the context",
    "unfit": "of those by the prompt alone",
    "env_errors": "broken by the environment",
    "env_timeouts": "timed out in the environment",
}

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """The headline metric of a run, with the names of its keys in an evaluation."""

    name: str
    value: str
    low: str
    high: str
    percent: bool

    def shown(self, entry: Entry | None) -> str:
        """The value as text: 22.5% [18, 28], with the interval in percent too; or 0.250 [0.212, 0.288]."""
        if entry is None:
            return MISSING
        value, low, high = (entry[key] for key in (self.value, self.low, self.high))
        if self.percent:
            return f"{value:.1%} [{100 * low:.0f}, {100 * high:.0f}]"
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


SUCCESS = Measure("success", "success", "low", "high", percent=True)
REWARD = Measure("mean reward", "reward", "reward_low", "reward_high", percent=False)


def measure_of(summary: Summary) -> Measure:
    """The mean reward if the environment grades answers, else success.

    It grades answers if some that were not right got a part of the reward. A policy may then learn much before it
    solves anything.
    """
    return REWARD if any(entry.get("graded") for entry in _entries(summary)) else SUCCESS


def main_decoding(made: Container[str]) -> str:
    """The headline decoding: sampled if it was evaluated, since RL optimises it, else greedy."""
    return next(decoding for decoding in DECODINGS[::-1] if decoding in made)


def headline_decoding(wanted: EvalConfig) -> str:
    """The `main_decoding` among the configured decodings."""
    return main_decoding([decoding for decoding in DECODINGS if getattr(wanted, decoding)])


def stages_of(summary: Summary) -> list[str]:
    """The evaluated stages, in the order of the run."""
    return [stage for stage in STAGES if summary["eval"].get(stage)]


def rows_of(summary: Summary) -> list[tuple[str, str]]:
    """Every (variant, decoding) that was evaluated at some stage, the trained variant first."""
    rows = {
        (variant, decoding)
        for stage in stages_of(summary)
        for variant, entry in summary["eval"][stage].items()
        for decoding in DECODINGS
        if decoding in entry
    }
    return sorted(rows, key=lambda row: (row[0] != summary["train_variant"], row))


def held_out_losses(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The held-out loss by stage and variant, from the lines of metrics.jsonl (rlpost/tasks/held_out.py)."""
    losses: dict[str, dict[str, float]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(HELD_OUT) and key.endswith("/loss"):
                losses.setdefault(str(line["stage"]), {})[
                    key.removeprefix(HELD_OUT).removesuffix("/loss")
                ] = value
    return losses


def held_out_told(summary: Summary) -> dict[str, str]:
    """A variant's held-out loss in nats per token: "9.270 before, 5.463 after". Empty if none was measured."""
    stages = summary.get("held_out_loss", {})
    variants = dict.fromkeys(variant for losses in stages.values() for variant in losses)
    return {
        variant: ", ".join(
            f"{stages[stage][variant]:.3f} {stage}" for stage in STAGES if variant in stages.get(stage, {})
        )
        for variant in variants
    }


def entry_of(summary: Summary, stage: str, variant: str, decoding: str) -> Mapping[str, Any] | None:
    """One evaluation; None if it was not made."""
    entry: Mapping[str, Any] | None = summary["eval"].get(stage, {}).get(variant, {}).get(decoding)
    return entry


def role(summary: Summary, variant: str) -> str:
    """The role of a variant in the run."""
    if variant == summary["train_variant"]:
        return "trained"
    known = summary["variants"].get(variant, {})
    if known.get("fake_rule"):
        return "fake rule"
    return "held out" if known.get("held_out") else "not trained"


def share(entry: Entry | None) -> str:
    """Success as text: 22.5% [18, 28], with the interval in percent too."""
    return SUCCESS.shown(entry)


def _entries(summary: Summary) -> list[Entry]:
    """Every evaluation that was made."""
    entries = (entry_of(summary, stage, *row) for stage in stages_of(summary) for row in rows_of(summary))
    return [entry for entry in entries if entry is not None]


def has_steps(summary: Summary) -> bool:
    """Whether some episode continued after a right answer, so that the accuracy of single steps is informative."""
    return any(entry.get("step_accuracy") for entry in _entries(summary))


def step_share(entry: Mapping[str, Any] | None) -> str:
    """The share of right steps as text: 61.2%."""
    accuracy = None if entry is None else entry.get("step_accuracy")
    return MISSING if accuracy is None else f"{accuracy:.1%}"


def shown_ks(by_k: Iterable[str]) -> list[str]:
    """The powers of two among the keys of `pass_at` or `majority_at`, and the last: all would fill a page."""
    ks = sorted(map(int, by_k))
    return [str(k) for k in ks if k & (k - 1) == 0 or k == ks[-1]]


def at_k_names(summary: Summary, variant: str, decoding: str) -> list[tuple[str, str]]:
    """(pass_at or majority_at, k), k from 2 (1 is success), that some stage has for the variant and decoding."""
    entries = [entry_of(summary, stage, variant, decoding) or {} for stage in stages_of(summary)]
    names: dict[tuple[str, str], None] = {}
    for name in AT_K:
        for by_k in (entry.get(name) or {} for entry in entries):
            names |= {(name, k): None for k in shown_ks(by_k) if k != "1"}
    return list(names)


def most_samples(summary: Summary, variant: str, decoding: str) -> list[tuple[str, str]]:
    """The entries of `at_k_names` with the greatest k: pass@k and majority@k of all samples."""
    greatest = {name: (name, k) for name, k in at_k_names(summary, variant, decoding)}
    return list(greatest.values())


def samples_of(summary: Summary) -> list[tuple[str, str, str, str]]:
    """(variant, decoding, pass_at or majority_at, k) for every row of a page's table of samples."""
    rows = [(row, at_k_names(summary, *row)) for row in rows_of(summary)]
    return [(*row, name, k) for row, names in rows for name, k in names]


def difficulties_of(summary: Summary, variant: str, decoding: str) -> list[str]:
    """The difficulties of the instances played at some stage, in the order of an evaluation."""
    entries = [entry_of(summary, stage, variant, decoding) or {} for stage in stages_of(summary)]
    return list(dict.fromkeys(name for entry in entries for name in entry.get("by_difficulty") or {}))


def at_k_share(entry: Entry | None, name: str, k: str) -> str:
    """pass@k or majority@k as text, with its interval in percent: 41.2% [35, 48]."""
    entries = ((entry or {}).get(name) or {}).get(k)
    return MISSING if entries is None else SUCCESS.shown({**entries, "success": entries["value"]})


def unplayed(entry: Mapping[str, Any]) -> list[str]:
    """How many episodes were not played to an end and so count as not solved, with their share and the first cause.

    Older runs record fewer kinds.
    """
    counted = [
        f"{entry[key]} {reason} ({entry[key] / entry['n']:.0%})"
        for key, reason in UNPLAYED.items()
        if entry.get(key)
    ]
    first = entry.get("first_failure")
    return counted if first is None else [*counted, f"the first: {first}"]


class Trend(StrEnum):
    """The direction of a change: rose or fell only if a difference's interval excludes zero, or two do not overlap."""

    ROSE = "rose"
    FELL = "fell"
    UNCLEAR = "did not clearly change"


def verdict(before: Entry, after: Entry, measure: Measure = SUCCESS) -> Trend:
    if after[measure.low] > before[measure.high]:
        return Trend.ROSE
    if after[measure.high] < before[measure.low]:
        return Trend.FELL
    return Trend.UNCLEAR


def gain_of(summary: Summary, variant: str, decoding: str) -> Entry | None:
    """The paired difference of success (rlpost.record.gains); None if an end was not evaluated, or in older runs."""
    gain: Entry | None = summary.get("gains", {}).get(variant, {}).get(decoding)
    return gain


def trend(gain: Entry) -> Trend:
    if gain["low"] > 0:
        return Trend.ROSE
    return Trend.FELL if gain["high"] < 0 else Trend.UNCLEAR


def _points(gain: Entry) -> str:
    """A gain as text: +8.3 points [+0.6, +16.0] on the same 192 instances."""
    low, high = 100 * gain["low"], 100 * gain["high"]
    return f"{100 * gain['gain']:+.1f} points [{low:+.1f}, {high:+.1f}] on the same {gain['instances']} instances"


def changes(summary: Summary) -> list[str]:
    """The changes by training, one line per (variant, decoding) that was evaluated at both ends."""
    rows = [(row, gain_of(summary, *row)) for row in rows_of(summary)]
    return [
        f"{variant}, {decoding}: success {trend(gain)}, {_points(gain)}"
        for (variant, decoding), gain in rows
        if gain is not None
    ]


def headlines(summary: Summary) -> list[str]:
    """One sentence per (variant, decoding), the trained variant first."""
    return [_headline(summary, variant, decoding) for variant, decoding in rows_of(summary)]


def _headline(summary: Summary, variant: str, decoding: str) -> str:
    subject = f"{variant} ({role(summary, variant)}), {decoding}"
    before, warm, after = (entry_of(summary, stage, variant, decoding) for stage in STAGES)
    measure = measure_of(summary)
    if before is None or after is None:
        stage = next(s for s in reversed(STAGES) if entry_of(summary, s, variant, decoding))
        only = measure.shown(entry_of(summary, stage, variant, decoding))
        return f"{subject}: {measure.name} {only} ({stage}); there is nothing to compare it with."
    way = f" by way of {measure.shown(warm)} after the warm start" if warm is not None else ""
    ends = f"from {measure.shown(before)} to {measure.shown(after)}"
    gain = gain_of(summary, variant, decoding)
    if gain is not None and measure is SUCCESS:
        return f"{subject}: success {trend(gain)}, {ends}{way}: {_points(gain)}."
    said = verdict(before, after, measure)
    overlap = "the intervals overlap" if said is Trend.UNCLEAR else "the intervals do not overlap"
    return f"{subject}: {measure.name} {said}, {ends}{way}; {overlap}."
