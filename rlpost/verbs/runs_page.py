"""The page that compares runs: settings that differ, curves, evaluations, paired differences, time and tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.config.keys import leaves
from rlpost.errors import OutputError
from rlpost.pages.console import duration
from rlpost.pages.figures import Series
from rlpost.pages.images import Image
from rlpost.pages.render import render
from rlpost.pages.run_page import CURVES
from rlpost.record.gains import gain
from rlpost.record.metrics import evaluation
from rlpost.record.run_dir import EvaluationKey, RunDir, read_trajectories, stage_number
from rlpost.record.summary import DECODINGS, MISSING, REWARD, STAGES, SUCCESS, Measure, Trend, trend
from rlpost.verbs import policy
from rlpost.verbs.run_curves import overlay

_OF_THE_PLACE = ("output_dir", "resume")
TOKENS = {
    "tokens/prompt": "tokens of prompts and feedback",
    "tokens/sampled": "tokens sampled",
    "tokens/scored": "tokens scored without gradient",
    "tokens/trained": "tokens trained on",
    "tokens/teacher": "tokens scored by the teacher",
}


@dataclass(frozen=True)
class Run:
    """The parts of a record that the page needs."""

    name: str
    settings: Mapping[str, Any]  # by dotted key
    lines: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
    files: Mapping[EvaluationKey, Path]
    entries: Mapping[EvaluationKey, Mapping[str, Any]]  # measured from the episodes
    seconds: float
    finished: bool


def read(folders: Sequence[Path]) -> list[Run]:
    """Read the records, in order. Raises OutputError naming all folders that are not runs, or for a broken record."""
    if wrong := [str(folder) for folder in folders if not policy.is_run(folder)]:
        raise OutputError(
            f"{', '.join(wrong)}\n  reason: no run (config.yaml and trajectories/ are not both there)\n"
            "  remedy: name folders that python -m rlpost.run printed"
        )
    return [_read(RunDir(folder), name) for folder, name in zip(folders, _names(folders), strict=True)]


def _read(run_dir: RunDir, name: str) -> Run:
    files = run_dir.evaluations()
    episodes = {key: read_trajectories(path) for key, path in files.items()}
    return Run(
        name,
        dict(leaves(run_dir.read_settings())),
        run_dir.read_metrics(),
        files,
        {key: evaluation(played) for key, played in episodes.items() if played},
        sum(sitting.seconds for sitting in run_dir.read_sittings()),
        run_dir.read_summary() is not None,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("a folder is not named twice")


def page(runs: Sequence[Run]) -> bytes:
    """The page as HTML. The other runs are compared with the first one."""
    measure = REWARD if any(entry["graded"] for run in runs for entry in run.entries.values()) else SUCCESS
    why_not = unpaired(runs)
    return render(
        "runs.html.jinja",
        title="Runs: " + ", ".join(run.name for run in runs),
        names=[run.name for run in runs],
        unfinished=[run.name for run in runs if not run.finished],
        settings=list(_settings(runs)),
        measure=measure,
        evaluations=list(_evaluations(runs, measure)),
        why_not=why_not,
        differences=[] if why_not else list(differences(runs)),
        curves=list(_curves(runs)),
        costs=list(_costs(runs)),
    )


def _settings(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Table rows of the settings that differ between runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    for key in keys:
        values = [run.settings.get(key, MISSING) for run in runs]
        if key.partition(".")[0] not in _OF_THE_PLACE and any(value != values[0] for value in values):
            yield [key, *("null" if value is None else str(value) for value in values)]


def _order(key: EvaluationKey) -> tuple[str, int, int, int]:
    stage, variant, decoding = key
    number = stage_number(stage)
    place = STAGES.index(stage) if stage in STAGES else 1
    return variant, DECODINGS[::-1].index(decoding), place if number is None else 1, number or 0


def _rows(runs: Sequence[Run]) -> list[EvaluationKey]:
    """Every evaluation at the start or end of some run (the curves show those of iterations), by variant, decoding."""
    keys = {key for run in runs for key in run.entries if key[0] in STAGES and key[2] in DECODINGS}
    return sorted(keys, key=_order)


def _evaluations(runs: Sequence[Run], measure: Measure) -> Iterator[dict[str, Any]]:
    for key in _rows(runs):
        stage, variant, decoding = key
        entries = [run.entries.get(key) for run in runs]
        yield {"stage": stage, "variant": variant, "decoding": decoding, "entries": entries}


def unpaired(runs: Sequence[Run]) -> str | None:
    """The reason why instances of the runs cannot be paired; None if they can."""
    for key in ("env", "env_args"):
        if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs):
            return f"{key} differs, so that an instance of the same name may be another one"
    return None


def differences(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The difference of every other run to the first, after training, on the instances that both evaluated."""
    for _, variant, decoding in (key for key in _rows(runs) if key[0] == "after"):
        key = ("after", variant, decoding)
        base = runs[0].files.get(key)
        for run in runs[1:]:
            other = run.files.get(key)
            if base is not None and other is not None:
                keys = gain(read_trajectories(base), read_trajectories(other))
                yield {"variant": variant, "decoding": decoding, "run": run.name, **_told(keys)}


_SAID = {Trend.ROSE: "higher", Trend.FELL: "lower", Trend.UNCLEAR: "no clear difference"}


def _told(change: Mapping[str, Any] | None) -> dict[str, str]:
    if change is None:
        return {"difference": MISSING, "instances": "fewer than 2", "said": "nothing to pair"}
    value, low, high = (100 * change[key] for key in ("gain", "low", "high"))
    return {
        "difference": f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]",
        "instances": str(change["instances"]),
        "said": _SAID[trend(change)],
    }


def _curves(runs: Sequence[Run]) -> Iterator[Image]:
    """Plot metrics over iterations, counted from 1 as on the console, and evaluations made during training."""
    for spec in CURVES:
        for key, label in spec.keys.items():
            drawn = [_series(run, key) for run in runs]
            title = spec.title if len(spec.keys) == 1 else f"{spec.title}: {label}"
            if any(line.ys for line in drawn):
                yield overlay(title, drawn, "iteration", spec.percent)
    for variant, decoding in dict.fromkeys(
        (v, d) for run in runs for s, v, d in run.entries if stage_number(s) is not None
    ):
        drawn = [_on_the_way(run, variant, decoding) for run in runs]
        yield overlay(
            f"Success on {variant}, {decoding}, evaluated on the way", drawn, "iteration or step", True
        )


def _series(run: Run, key: str) -> Series:
    kept = [line for line in run.lines if line.get("iteration") is not None and line.get(key) is not None]
    return Series(run.name, [line["iteration"] + 1 for line in kept], [line[key] for line in kept])


def _on_the_way(run: Run, variant: str, decoding: str) -> Series:
    points = sorted(
        (number + 1, entry["success"])
        for (stage, v, d), entry in run.entries.items()
        if (v, d) == (variant, decoding) and (number := stage_number(stage)) is not None
    )
    return Series(run.name, [x for x, _ in points], [y for _, y in points])


def _costs(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Table rows of time and tokens. What a run did not measure stays empty."""
    yield ["wall time", *(duration(run.seconds) if run.seconds else MISSING for run in runs)]
    yield ["iterations", *(str(sum("iteration" in line for line in run.lines)) for run in runs)]
    phases = dict.fromkeys(k for run in runs for line in run.lines for k in line if k.startswith("seconds/"))
    for phase in (name for name in phases if name != "seconds/total"):
        yield [f"time: {phase.removeprefix('seconds/')}", *(_sum(run, phase, ",.1f", " s") for run in runs)]
    for key, label in TOKENS.items():
        if any(key in line for run in runs for line in run.lines):
            yield [label, *(_sum(run, key) for run in runs)]


def _sum(run: Run, key: str, form: str = ",.0f", unit: str = "") -> str:
    values = [line[key] for line in run.lines if line.get(key) is not None]
    return f"{sum(values):{form}}{unit}" if values else MISSING
