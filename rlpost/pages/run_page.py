"""A run's record as one HTML page that needs nothing but itself: `write_report`.

Works on whatever is there: a run that was stopped early has a page too, which says so, by
`python -m rlpost.report FOLDER`, which knows comparisons as well. Everything a model or an environment wrote is escaped
by the template; the page carries no script, and forbids itself to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlpost.pages import evaluation_curve, figures, render, retention_figures, spectrum_figures
from rlpost.pages.console import duration
from rlpost.pages.figures import Series
from rlpost.pages.images import Image
from rlpost.pages.replay import Gallery
from rlpost.pages.sample_episodes import Deal, choose
from rlpost.record import failures, run_error
from rlpost.record.files import write_atomic
from rlpost.record.gains import gains
from rlpost.record.metrics import evaluation
from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.record.summary import (
    AT_K,
    DECODINGS,
    STAGES,
    at_k_share,
    difficulties_of,
    entry_of,
    has_steps,
    headlines,
    held_out_told,
    main_decoding,
    measure_of,
    role,
    rows_of,
    samples_of,
    stages_of,
)
from rlpost.types import Trajectory

EXAMPLES = 3  # instances shown a variant


@dataclass(frozen=True)
class CurveSpec:
    title: str
    keys: Mapping[str, str]  # metric -> label
    percent: bool = False


CURVES = (
    CurveSpec("Success in training", {"success": "success"}, percent=True),
    CurveSpec("Reward per episode", {"reward": "reward"}),
    CurveSpec(
        "KL divergence, nats per token",
        {"kl_reference": "to the reference", "approx_kl": "within an update"},
    ),
    CurveSpec("Entropy, nats per token", {"entropy": "entropy"}),
    CurveSpec("Explained variance of the returns", {"explained_variance": "explained variance"}),
    CurveSpec("Log-prob gap, engine to learner", {"logprob_gap": "mean |difference|"}),
    CurveSpec("Tokens per answer", {"answer_tokens": "tokens"}),
    CurveSpec(
        "Norm of the update, of the weights'", {"spectrum/relative_norm": "relative norm"}, percent=True
    ),
    CurveSpec(
        "Rank of the update, mean of modules",
        {"spectrum/effective_rank": "effective rank", "spectrum/stable_rank": "stable rank"},
    ),
    CurveSpec("Answers cut at their limit", {"cut_share": "share"}, percent=True),
    CurveSpec("Episodes learnt from (rft, dpo)", {"kept_episodes": "share"}, percent=True),
    CurveSpec("Margin of the implicit rewards (dpo)", {"dpo_margin": "margin"}),
)


def write_report(run_dir: RunDir, own_code: bool = False) -> Path:
    """Write report.html from what the run directory holds, and return its path.

    Without `own_code` no module that the record names is imported: an environment of the user's draws no pictures.

    Raises OutputError or ConfigError when the record is broken, OutputError when the page cannot be written.
    """
    finished = run_dir.read_summary()
    config_yaml = run_dir.config.read_text(encoding="utf-8")
    config = run_dir.read_config()
    summary = finished if finished is not None else _recovered(run_dir, config)
    lines, gallery = run_dir.read_metrics(), Gallery.of(config, own_code)
    page = render.render(
        "report.html.jinja",
        title=f"{run_dir.path.resolve().parent.name} / {run_dir.path.resolve().name}",
        finished=finished is not None,
        endpoint=OmegaConf.select(config, "eval.endpoint") is not None,
        error=run_error.read(run_dir.path),
        iterations=len(_values(lines, "iteration", "seconds/total").xs),
        facts=_facts(finished),
        failed=failed_episodes(lines),
        headlines=headlines(summary),
        table=_table(summary),
        measure=measure_of(summary),
        steps=has_steps(summary),
        stages=stages_of(summary),
        evaluations=evaluation_curve.drawn(run_dir, lines),
        curves=list(curves(lines)),
        retention=retention_figures.of_run(run_dir, lines, str(summary["train_variant"])),
        spectrum=spectrum_figures.of_record(run_dir.path),
        time=_time(lines),
        outcomes=list(_outcome_bars(summary)),
        turns=_by_turn(summary),
        samples=_samples(summary),
        difficulties=_by_difficulty(summary),
        deals=_deals(run_dir, summary, gallery),
        no_pictures=gallery.failure if gallery else None,
        config=config_yaml,
        versions=json.loads(run_dir.versions.read_bytes()) if run_dir.versions.is_file() else {},
    )
    write_atomic(run_dir.report, page)
    return run_dir.report


def _recovered(run_dir: RunDir, config: DictConfig) -> dict[str, Any]:
    """What summary.json would say of the evaluations before and after training that a stopped run got to."""
    stages: dict[str, Any] = {}
    marker = OmegaConf.select(config, "rollout.answer_marker")
    for (stage, variant, decoding), path in run_dir.evaluations().items():
        if stage in STAGES and (episodes := read_trajectories(path)):
            stages.setdefault(stage, {}).setdefault(variant, {})[decoding] = evaluation(episodes, marker)
    summary = {"eval": stages, "variants": {}, "train_variant": OmegaConf.select(config, "train_variant")}
    return summary | {"gains": gains(run_dir, summary)}


def _facts(summary: Mapping[str, Any] | None) -> dict[str, str]:
    if summary is None:
        return {}
    facts = {"iterations": str(summary["iterations"]), "wall time": duration(summary["seconds"])}
    if player := summary.get("player"):
        facts["player"] = f"{player['model']} at {player['endpoint']}"
    if (sittings := summary.get("sittings", 1)) > 1:
        facts["wall time"] += f" in {sittings} sittings"
    if summary.get("swap_seconds_median") is not None:
        facts["adapter swap, median"] = f"{summary['swap_seconds_median']:.3f} s"
    if summary.get("logprob_gap_mean") is not None:
        facts["engine-to-learner log-prob gap of sampled tokens, mean"] = (
            f"{summary['logprob_gap_mean']:.4f} nats"
        )
    if summary.get("canary_gap_mean") is not None:
        facts["engine-to-learner log-prob gap of canaries, mean"] = f"{summary['canary_gap_mean']:.4f} nats"
    return facts | {
        f"held-out loss of {v}, nats per token": told for v, told in held_out_told(summary).items()
    }


def failed_episodes(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the iterations' lines tell of episodes that say nothing of the policy, over the whole run."""
    played = [line for line in lines if line.get("episodes")]
    sums = {kind: sum(line.get(kind) or 0 for line in played) for kind in failures.KINDS}
    said = failures.told(sums, sum(line["episodes"] for line in played))
    first = next((line for line in played if line.get("first_failure")), None)
    if first is not None:
        said.append(f"the first, in iteration {first['iteration'] + 1}: {first['first_failure']}")
    return said


def _table(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "variant": variant,
            "role": role(summary, variant),
            "rule": summary["variants"].get(variant, {"summary": ""})["summary"],
            "decoding": decoding,
            "entries": [entry_of(summary, stage, variant, decoding) for stage in stages_of(summary)],
        }
        for variant, decoding in rows_of(summary)
    ]


def _values(lines: Sequence[Mapping[str, Any]], x: str, key: str, label: str = "") -> Series:
    kept = [line for line in lines if line.get(x) is not None and line.get(key) is not None]
    return Series(label, [line[x] for line in kept], [line[key] for line in kept])


def curves(lines: Sequence[Mapping[str, Any]], most: int | None = None) -> Iterator[Image]:
    """One figure a quantity of training that the lines of metrics.jsonl have, of `most` points (none: of all)."""
    # A person counts iterations from 1, as the console does; the record and its files count from 0.
    lines = [{**line, "iteration": line["iteration"] + 1} if "iteration" in line else line for line in lines]
    for spec in CURVES:
        series = [_values(lines, "iteration", key, label) for key, label in spec.keys.items()]
        if drawn := [_thinned(line, most) for line in series if line.ys]:
            yield figures.curve(spec.title, drawn, "iteration", spec.percent)
    steps = [{**line, "step": i} for i, line in enumerate((m for m in lines if "loss" in m), start=1)]
    if (supervised := _values(steps, "step", "loss", "loss")).ys:
        yield figures.curve("Supervised loss, nats per token", [_thinned(supervised, most)], "step")


def _thinned(line: Series, most: int | None) -> Series:
    return line if most is None else figures.thinned(line, most)


def _time(lines: Sequence[Mapping[str, Any]]) -> Image | None:
    """The sum of each phase over the whole run."""
    parts = phase_seconds(lines)
    return figures.stacked_bar("Where the time went", parts) if sum(parts.values()) else None


def phase_seconds(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each phase over all lines, longest first and `other` last."""
    sums: dict[str, float] = {}
    for line in lines:
        for key in (k for k in line if k.startswith("seconds/") and k != "seconds/total"):
            phase = key.removeprefix("seconds/")
            sums[phase] = sums.get(phase, 0.0) + (line[key] or 0.0)
    return dict(sorted(sums.items(), key=lambda item: (item[0] == "other", -item[1])))


def _main_decoding(summary: Mapping[str, Any], variant: str) -> str:
    return main_decoding({decoding for v, decoding in rows_of(summary) if v == variant})


def _ends(summary: Mapping[str, Any]) -> list[str]:
    """The two stages to compare: the first and the last."""
    stages = stages_of(summary)
    return stages if len(stages) < 2 else [stages[0], stages[-1]]


def _variants(summary: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(variant for variant, _ in rows_of(summary)))


def _outcome_bars(summary: Mapping[str, Any]) -> Iterator[Image]:
    for variant in _variants(summary):
        decoding = _main_decoding(summary, variant)
        groups = {}
        for stage in _ends(summary):
            entry = entry_of(summary, stage, variant, decoding)
            if entry is not None and (answers := sum(entry["outcomes"].values())):
                groups[stage] = {name: n / answers for name, n in entry["outcomes"].items()}
        if groups:
            title = f"{variant} ({role(summary, variant)}), {decoding}: share of all answers"
            yield figures.paired_bars(title, groups)


def _by_turn(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of success within k turns; empty when every episode has one turn."""
    rows: list[dict[str, Any]] = []
    for variant, decoding in rows_of(summary):
        for stage in stages_of(summary):
            entry = entry_of(summary, stage, variant, decoding)
            if entry is not None and len(entry["success_by_turn"]) > 1:
                shares = entry["success_by_turn"]
                rows.append({"variant": variant, "decoding": decoding, "stage": stage, "shares": shares})
    longest = max((len(row["shares"]) for row in rows), default=0)
    # After the longest episode of its stage nothing more is solved.
    return [
        {**row, "shares": row["shares"] + row["shares"][-1:] * (longest - len(row["shares"]))} for row in rows
    ]


def _samples(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of pass@k and majority@k; empty where each instance was played once."""
    return [
        {
            "variant": variant,
            "decoding": decoding,
            "figure": f"{AT_K[name]}{k}",
            "shares": [
                at_k_share(entry_of(summary, stage, variant, decoding), name, k)
                for stage in stages_of(summary)
            ],
        }
        for variant, decoding, name, k in samples_of(summary)
    ]


def _by_difficulty(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of success by difficulty; empty where the environment does not say how difficult an instance is."""
    return [
        {
            "variant": variant,
            "decoding": decoding,
            "difficulty": difficulty,
            "entries": [
                ((entry_of(summary, stage, variant, decoding) or {}).get("by_difficulty") or {}).get(
                    difficulty
                )
                for stage in stages_of(summary)
            ],
        }
        for variant, decoding in rows_of(summary)
        for difficulty in difficulties_of(summary, variant, decoding)
    ]


def _deals(run_dir: RunDir, summary: Mapping[str, Any], gallery: Gallery | None) -> dict[str, list[Deal]]:
    """Per variant, a few deals as played at both ends."""
    found = {}
    for variant in _variants(summary):
        for decoding in DECODINGS[::-1]:
            if played := _played(run_dir, _ends(summary), variant, decoding):
                deals = choose(played, EXAMPLES)
                found[f"{variant}, {decoding}"] = (
                    [gallery.illustrated(d) for d in deals] if gallery else deals
                )
                break
    return found


def _played(
    run_dir: RunDir, stages: Sequence[str], variant: str, decoding: str
) -> dict[str, list[Trajectory]]:
    files = run_dir.evaluations()
    paths = {stage: files.get((stage, variant, decoding)) for stage in stages}
    return {stage: read_trajectories(path) for stage, path in paths.items() if path is not None}
