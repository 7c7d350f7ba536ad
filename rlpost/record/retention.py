"""What training cost elsewhere, in lines of metrics.jsonl (docs/retention.md), which rlpost.tasks.retention writes.

retention/env/VARIANT/KEY   success on `retention.env`: KEY is n, success, low, high
retention/text/KEY          KEY is loss (nats per token), tokens
retention/kl/KEY            KEY is reverse/k3_token, forward/k1_episode_error, ...; absent before there is a start
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

ENV, TEXT, KL = "retention/env/", "retention/text/", "retention/kl/"
START_EPISODES = (
    "retention-start"  # the file of the start's episodes, from which KL(start || policy) is measured
)
DIRECTIONS = {"forward": "KL(start ‖ policy)", "reverse": "KL(policy ‖ start)"}
HEADLINE = "k3_token"  # the estimate that pages show: never negative, in nats per token


@dataclass(frozen=True)
class Measured:
    """One stage."""

    stage: str
    success: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by variant: n, success, low, high
    text: float | None = None  # nats per token
    kl: Mapping[str, float] = field(default_factory=dict)  # by the KEY of retention/kl/KEY

    def distance(self, direction: str) -> float | None:
        """The headline KL of a direction (of DIRECTIONS) in nats per token; None if it was not measured."""
        return self.kl.get(f"{direction}/{HEADLINE}")


def episodes_name(stage: str, variant: str) -> str:
    """The stem of the file of the episodes that a stage played on a variant of `retention.env`."""
    return f"retention-{stage}-{quote(variant, safe='')}"


def measured(lines: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """Every stage that was measured, in the order of the run."""
    return [found for line in lines if (found := _of_line(line)) is not None]


def start_of(found: Sequence[Measured]) -> Measured | None:
    """What training began with: the stage `warm`, or `before` without a warm start."""
    starts = [each for each in found if each.stage in ("before", "warm")]
    return starts[-1] if starts else None


def since_start(found: Sequence[Measured]) -> list[Measured]:
    """The start and what follows it; empty without a start."""
    start = start_of(found)
    return [] if start is None else list(found[found.index(start) :])


def summary(found: Sequence[Measured]) -> dict[str, Any]:
    """The entry of summary.json, by stage."""
    return {
        each.stage: {key: value for key, value in asdict(each).items() if key != "stage"} for each in found
    }


def of_summary(entry: Mapping[str, Any]) -> list[Measured]:
    """Inverse of `summary`."""
    return [Measured(stage, **each) for stage, each in entry.items()]


def told(found: Sequence[Measured]) -> str | None:
    """What was lost from the start to the last stage, in a sentence; None without two stages to compare."""
    way = since_start(found)
    if len(way) < 2:
        return None
    start, end = way[0], way[-1]
    said = [
        f"{variant} {start.success[variant]['success']:.1%} to {now['success']:.1%}"
        for variant, now in end.success.items()
        if variant in start.success
    ]
    if start.text is not None and end.text is not None:
        said.append(f"text {start.text:.4f} to {end.text:.4f} nats per token")
    said += [
        f"{name} {d:.4f} nats per token"
        for key, name in DIRECTIONS.items()
        if (d := end.distance(key)) is not None
    ]
    return f"what was lost since the start: {', '.join(said)}"


def _of_line(line: Mapping[str, Any]) -> Measured | None:
    success: dict[str, dict[str, float]] = {}
    for key, value in _under(ENV, line).items():
        variant, _, figure = key.rpartition("/")
        success.setdefault(variant, {})[figure] = value
    text, kl = _under(TEXT, line), _under(KL, line)
    if not (success or text or kl):
        return None
    return Measured(str(line["stage"]), success, text.get("loss"), kl)


def _under(prefix: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the keys that begin with `prefix`, without it; those that were not finite are absent."""
    return {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix) and v is not None}
