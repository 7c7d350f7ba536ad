"""The page of a run that goes on, as fragments that are replaced one by one: `LiveRun`.

Only reads. What is costly is done again only when its file has changed: metrics.jsonl is read from where the last look
ended, an evaluation once, and the figures are drawn so seldom that they take a twentieth of a processor at most.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlpost.config.adapter_kinds import TABLE, kind_named
from rlpost.errors import RlpostError
from rlpost.pages import evaluation_curve, figures, render, run_page
from rlpost.pages.console import WINDOW, duration
from rlpost.pages.images import Image
from rlpost.record import jsonl, run_error
from rlpost.record.following import Following
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.record.run_state import State, state_of
from rlpost.types import Trajectory

Line = Mapping[str, Any]

SHARE = 0.05  # of a processor that drawing may take
LONGEST_PAUSE_S = 60.0  # between two drawings, whatever they cost
POINTS = 300  # of a curve
LATE_LEAST_S = 60.0  # without a line before a run is called late
LATE_TIMES = 3.0  # and this many times the longest of its lately recorded laps
BROKEN = (
    RlpostError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)  # of a record, by whoever wrote it
SETTINGS = (
    *("name", "task", "algo.name", "env", "model", "adapter", "train_variant", "eval_variants", "seed"),
    *("eval.endpoint", "eval.endpoint_model"),
    *("dtype", "algo.iterations", "algo.learning_rate", "algo.kl_coef", "rollout.group_size"),
    *("rollout.groups", "rollout.max_new_tokens", "rollout.temperature", "lora.kind", "lora.rank"),
    *("sft.steps", "sft.learning_rate", "rollout.workers", "learner.workers"),
)


class LiveRun:
    """One run's fragments. `now` is the time of day, in seconds since 1970."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.run_dir = RunDir(folder)
        self._now = now
        self._metrics = Following(self.run_dir.metrics)
        self._settings_read: tuple[int, DictConfig] | None = None
        self._figures = _Seldom(now)
        self._shares: dict[Path, tuple[tuple[int, int], float | None]] = {}
        self._latest: tuple[tuple[Path, int] | None, bytes] = (None, b"")

    @property
    def title(self) -> str:
        folder = self.run_dir.path.resolve()
        return f"{folder.parent.name} / {folder.name}"

    def config(self) -> DictConfig:
        """config.yaml, which a resumed run may write anew."""
        written = self.run_dir.config.stat().st_mtime_ns
        if self._settings_read is None or self._settings_read[0] != written:
            self._settings_read = (written, self.run_dir.read_config())
        return self._settings_read[1]

    def fragments(self) -> dict[str, bytes]:
        """HTML by the fragment's name. What a broken record says no more of is told in its place."""
        made = {
            "status": self._status,
            "warnings": self._warnings,
            "curves": self._curves,
            "time": self._time,
            "episodes": self._episodes,
            "settings": self._settings,
        }
        return {name: _told(make) for name, make in made.items()}

    def progress(self) -> dict[str, str]:
        """One row of a table of runs: state, progress, success of the last iteration, when the last line came."""
        lines, state = self._lines(), state_of(self.run_dir)
        success = _last(lines, "success")
        return {
            "state": state.value,
            "progress": _progress(lines, self.config()),
            "success": "-" if success is None else f"{success:.1%}",
            "age": _ago(self._age()),
        }

    def _lines(self) -> list[dict[str, Any]]:
        return self._metrics.read()

    def _age(self) -> float | None:
        """Seconds since the last line; None before the first."""
        try:
            return max(0.0, self._now() - self.run_dir.metrics.stat().st_mtime)
        except FileNotFoundError:
            return None

    def _status(self) -> bytes:
        lines, config, state = self._lines(), self.config(), state_of(self.run_dir)
        return render.render(
            "live_status.html.jinja",
            state=state.value,
            progress=_progress(lines, config),
            left=_time_left(lines, config) if state in (State.RUNNING, State.UNKNOWN) else None,
            age=_ago(self._age()),
            shown=[
                (name, form.format(value))
                for name, key, form in (
                    ("success", "success", "{:.1%}"),
                    ("reward", "reward", "{:.3f}"),
                    ("KL", "kl_reference", "{:.4f}"),
                    *(() if _last(lines, "iteration") is not None else (("loss", "loss", "{:.4f}"),)),
                )
                if (value := _last(lines, key)) is not None
            ],
        )

    def _warnings(self) -> bytes:
        lines, state = self._lines(), state_of(self.run_dir)
        said = []
        if state is State.FAILED and (error := run_error.read(self.run_dir.path)):
            said.append(f"The run failed with {error}")
        if state is State.STOPPED:
            said.append(
                "The run was stopped or killed: it left neither a summary nor an error, and no process works."
            )
        age, limit = self._age(), late_after(lines)
        if state in (State.RUNNING, State.UNKNOWN) and age is not None and age > limit:
            said.append(
                f"No line for {duration(age)}: the longest of the last took {duration(limit / LATE_TIMES)}."
            )
        if failed := run_page.failed_episodes(lines):
            said.append(f"Episodes that say nothing of the policy were left out: {'; '.join(failed)}.")
        if lost := sum(line.get("non_finite") or 0 for line in lines):
            said.append(f"{lost} values were not finite.")
        if self._metrics.unreadable:
            said.append(f"{self._metrics.unreadable} lines of {self.run_dir.metrics.name} cannot be read.")
        return render.render("live_warnings.html.jinja", said=said)

    def _curves(self) -> bytes:
        lines = self._lines()
        ended = state_of(self.run_dir) not in (State.RUNNING, State.UNKNOWN)
        return self._figures.drawn("curves", self._metrics.version, lambda: self._draw_curves(lines), ended)

    def _draw_curves(self, lines: Sequence[dict[str, Any]]) -> bytes:
        samples = evaluation_curve.series(self.run_dir, lines, self._share)
        evaluations = evaluation_curve.figure(samples, lines)
        drawn = [*([evaluations] if evaluations else []), *run_page.curves(lines, POINTS)]
        return render.render("live_curves.html.jinja", curves=drawn)

    def _share(self, path: Path) -> float | None:
        """`success_of` a file, read once."""
        status = path.stat()
        key = (status.st_mtime_ns, status.st_size)
        if self._shares.get(path, (None, None))[0] != key:
            self._shares[path] = (key, evaluation_curve.success_of(path))
        return self._shares[path][1]

    def _time(self) -> bytes:
        lines = self._lines()
        ended = state_of(self.run_dir) not in (State.RUNNING, State.UNKNOWN)
        return self._figures.drawn("time", self._metrics.version, lambda: _draw_time(lines), ended)

    def _episodes(self) -> bytes:
        path = self._latest_file(self._lines())
        if path is None:
            return render.render("live_episodes.html.jinja", where=None, episodes={})
        key = (path, path.stat().st_mtime_ns)
        if self._latest[0] != key:
            shown = {"where": path.stem, "episodes": right_and_wrong(path)}
            self._latest = (key, render.render("live_episodes.html.jinja", **shown))
        return self._latest[1]

    def _latest_file(self, lines: Sequence[Line]) -> Path | None:
        """The episodes of the iteration that is being learnt from, else of the last one, else of an evaluation."""
        done = _last(lines, "iteration")
        for iteration in (0,) if done is None else (done + 1, done):
            if (path := self.run_dir.trajectories_file(iteration_name(iteration))).is_file():
                return path
        return next(reversed(self.run_dir.evaluations().values()), None)

    def _settings(self) -> bytes:
        config = self.config()
        chosen = {
            key: OmegaConf.select(config, key)
            for key in SETTINGS
            if key != "lora.rank" or _has_size(OmegaConf.select(config, "lora.kind"))
        }
        return render.render(
            "live_settings.html.jinja",
            chosen={key: _plain(value) for key, value in chosen.items() if value is not None},
            config=self.run_dir.config.read_text(encoding="utf-8", errors="replace"),
        )


def _has_size(kind: str | None) -> bool:
    """Whether lora.rank means anything in the kind of adapter. The first runs had LoRA alone and named no kind."""
    return kind is None or TABLE[kind_named(kind)].rank is not None


class _Seldom:
    """Keeps what was drawn until its data have changed and drawing again takes no more than SHARE of the time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: dict[str, tuple[object, bytes, float]] = {}

    def drawn(self, name: str, data: object, draw: Callable[[], bytes], at_once: bool) -> bytes:
        """`draw()`, or what it gave before. `at_once`: do not wait with data that are the last."""
        kept = self._kept.get(name)
        if kept is not None and (kept[0] == data or (self._now() < kept[2] and not at_once)):
            return kept[1]
        began = time.thread_time()
        page = draw()
        pause = min((time.thread_time() - began) / SHARE, LONGEST_PAUSE_S)
        self._kept[name] = (data, page, self._now() + pause)
        return page


def _told(make: Callable[[], bytes]) -> bytes:
    try:
        return make()
    except BROKEN as error:
        return render.render(
            "live_warnings.html.jinja", said=[f"This cannot be shown: {type(error).__name__}: {error}"]
        )


def _draw_time(lines: Sequence[Line]) -> bytes:
    parts, rows = run_page.phase_seconds(lines), []
    played = [line for line in lines if line.get("iteration") is not None]
    laps = played or [line for line in lines if line.get("step") is not None]
    for phase, seconds in parts.items():
        each = [line.get(f"seconds/{phase}") or 0.0 for line in laps]
        rows.append(
            {
                "phase": phase,
                "total": duration(seconds),
                "share": f"{seconds / (sum(parts.values()) or 1.0):.0%}",
                "median": f"{statistics.median(each):.2f} s" if any(each) else "-",
                "last": f"{each[-1]:.2f} s" if any(each) else "-",
            }
        )
    bar: Image | None = None
    if sum(parts.values()):
        bar = figures.stacked_bar("Where the time went", parts, columns=2)
    return render.render(
        "live_time.html.jinja", bar=bar, rows=rows, lap="iteration" if played else "supervised step"
    )


def right_and_wrong(path: Path) -> dict[str, Trajectory]:
    """The first episode of a file that was solved and the first that was not, an environment's failure only where
    there is no other. Reads no further than it must."""
    samples: dict[str, Trajectory] = {}
    broken: Trajectory | None = None
    with path.open("rb") as file:
        for line in file:
            episode = jsonl.from_line(line)
            if episode.ending.broken:
                broken = broken or episode
            else:
                samples.setdefault("solved" if episode.success else "not solved", episode)
            if len(samples) == 2:
                break
    if broken is not None:
        samples.setdefault("not solved", broken)
    return {name: samples[name] for name in ("solved", "not solved") if name in samples}


def late_after(lines: Sequence[Line]) -> float:
    """Seconds without a line after which a run is called late, by how long its last lines (and each kind of evaluation
    and the start, which are rare) took."""
    rare = [line for line in lines if line.get("iteration") is None and line.get("step") is None]
    took = [line.get("seconds/total") or 0.0 for line in (*rare, *lines[-WINDOW:])]
    return max(LATE_LEAST_S, LATE_TIMES * max(took, default=0.0))


def _total(config: DictConfig) -> tuple[str, int | None]:
    """What a run counts, and how many it takes; None where a budget decides."""
    task = str(OmegaConf.select(config, "task"))
    name, key = ("supervised step", "sft.steps") if task == "sft" else ("iteration", "algo.iterations")
    if task == "eval" or OmegaConf.select(config, "budget.amounts"):
        return name, None
    return name, OmegaConf.select(config, key)


def _done(lines: Sequence[Line], name: str) -> int:
    last = _last(lines, "iteration" if name == "iteration" else "step")
    return 0 if last is None else last + 1


def _progress(lines: Sequence[Line], config: DictConfig) -> str:
    """iteration 3 of 16; before the first, the last stage on record."""
    name, total = _total(config)
    done = _done(lines, name)
    if done:
        counted = f"{name} {done}{'' if total is None else f' of {total}'}"
        stage = str(lines[-1].get("stage"))
        return (
            counted
            if stage in ("rl", "sft")
            else f"{counted}, then {_STAGES.get(stage, f'evaluation ({stage})')}"
        )
    if not lines:
        return "starting: no line yet"
    if (step := _last(lines, "step")) is not None:
        steps = OmegaConf.select(config, "sft.steps")
        return f"warm start, supervised step {step + 1}{'' if steps is None else f' of {steps}'}"
    stage = str(lines[-1].get("stage"))
    return f"{_STAGES.get(stage, stage)} done, no {name} yet"


_STAGES = {
    "start": "start of engines and learner",
    "before": "evaluation of the bare model",
    "warm": "evaluation of the adapter that training starts from",
    "after": "evaluation at the end",
}


def _time_left(lines: Sequence[Line], config: DictConfig) -> str | None:
    """By the mean of the last iterations (steps), and of the evaluation that follows them; None where nobody knows."""
    name, total = _total(config)
    key = "iteration" if name == "iteration" else "step"
    took = [
        line["seconds/total"] for line in lines if line.get(key) is not None and line.get("seconds/total")
    ]
    if total is None or not _done(lines, name) or not took:
        return None
    evaluation = next((line["seconds/evaluation"] for line in lines if line.get("seconds/evaluation")), 0.0)
    return duration(statistics.fmean(took[-WINDOW:]) * max(0, total - _done(lines, name)) + evaluation)


def _last(lines: Sequence[Line], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)


def _ago(seconds: float | None) -> str:
    return "no line yet" if seconds is None else f"last line {duration(seconds)} ago"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if OmegaConf.is_list(value) else str(value)
