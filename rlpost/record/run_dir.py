"""The folder of a run, which is the run's record.

    config.yaml            every setting, resolved            versions.json   versions of the software it ran on
    metrics.jsonl          one object per iteration           summary.json    the result, written at the end
    trajectories/*.jsonl   every episode, one per line        report.html     all of it as a page
    evaluations.jsonl      which trajectories file belongs to which evaluation: stage, variant, decoding
    examples.jsonl         instances of the supervised steps, and of the expert answers mixed into iterations
    teacher.json           fingerprint of algo.teacher (rlpost.record.teacher)
    sittings.json          the time of every start            error.json      why it failed (rlpost.record.run_error)
    spectrum.json          what the update did to the weights (rlpost.record.spectrum), written at the end
    data.jsonl             the rows, if Python code gave them as a list
    console.log            the output of a run that `rlpost.start` started
    adapter/               the adapter in PEFT's own format   checkpoints/    what a resumed run needs
    start_policy/          the adapter that plays training's episodes, with rollout.policy=start

Files appear complete or not at all. A full disk, or one without permission to write, raises OutputError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from omegaconf import DictConfig, OmegaConf

from rlpost.config.former_words import translated, translated_line
from rlpost.config.yaml_files import read_mapping
from rlpost.errors import OutputError
from rlpost.record import jsonl, spectrum
from rlpost.record.files import append_whole, write_atomic, writing
from rlpost.record.folders import default_folder, new_folder
from rlpost.record.versions import versions
from rlpost.types import Trajectory

EvaluationKey = tuple[str, str, str]  # stage, variant, decoding
_OF_ITERATION = re.compile(r"iteration-(\d+)\.jsonl")
_OF_RETENTION = re.compile(r"retention-(after|(?:iteration|step)-\d+)-.*\.jsonl")
_STAGE = re.compile(r"(?:iteration|step)-(\d+)")
# For records made before evaluations.jsonl existed.
_EVALUATION = re.compile(
    r"eval-(?P<stage>before|warm|after|(?:iteration|step)-\d+)-(?P<variant>.*)-(?P<decoding>greedy|sampled)\.jsonl"
)


def iteration_name(iteration: int) -> str:
    """The stem of an iteration's trajectories file, and of its checkpoint: iteration-000012."""
    return f"iteration-{iteration:06d}"


def step_name(step: int) -> str:
    """The stage of an evaluation after a supervised step: step-000012."""
    return f"step-{step:06d}"


def stage_number(stage: str) -> int | None:
    """The iteration or step that a stage follows, the inverse of `iteration_name` and `step_name`; None for others."""
    match = _STAGE.fullmatch(stage)
    return None if match is None else int(match[1])


def evaluation_name(stage: str, variant: str, decoding: str) -> str:
    """The stem of an evaluation's file. `stage` is before, warm, after, an `iteration_name` or a `step_name`.

    A variant may have any name; characters that a file name cannot have (such as a slash) are encoded as in a URL.
    """
    return f"eval-{stage}-{quote(variant, safe='')}-{decoding}"


@dataclass(frozen=True)
class Sitting:
    """A start that worked on the run, up to its end; if it was killed, up to its last checkpoint."""

    seconds: float
    workers_replaced: int


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def start_policy(self) -> Path:
        """With rollout.policy=start: the adapter that plays training's episodes, and its canary."""
        return self.path / "start_policy"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def examples(self) -> Path:
        return self.path / "examples.jsonl"

    @property
    def evaluation_index(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def sittings(self) -> Path:
        return self.path / "sittings.json"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(cls, path: Path | str | None, name: str, seed: int, config_yaml: str) -> RunDir:
        """Start a record at `path`, by default outputs/<name>/<time>-<seed>.

        Raises OutputError if the folder cannot be written or already contains something.
        """
        run_dir = cls(new_folder(path, default_folder(name, seed), first="checkpoints"))
        write_atomic(run_dir.config, config_yaml.encode())
        run_dir._make_folders()
        return run_dir

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Open an existing record. Raises OutputError if `path` is not a record."""
        run_dir = cls(Path(path))
        if not run_dir.config.is_file():
            raise OutputError(
                f"resume={path}\n  reason: it is no run directory ({run_dir.config.name} is missing)\n"
                "  remedy: name the folder that an earlier run printed"
            )
        run_dir._make_folders()
        return run_dir

    def _make_folders(self) -> None:
        for folder in (self.checkpoints, self.trajectories):
            with writing(folder):
                folder.mkdir(exist_ok=True)

    def read_config(self) -> DictConfig:
        """The settings as written, by name. An older run's may differ from today's schema. Raises ConfigError."""
        return OmegaConf.create(translated(read_mapping(self.config)))

    def read_settings(self) -> dict[str, Any]:
        """Every setting of `read_config` as plain data, nested. Raises as it does."""
        settings = OmegaConf.to_container(self.read_config())
        assert isinstance(settings, dict)
        return {str(key): value for key, value in settings.items()}

    def write_versions(self) -> None:
        """Write versions.json. A resumed run with other versions keeps the previous ones in `earlier`."""
        now, earlier = versions(), []
        if self.versions.is_file():
            before = json.loads(self.versions.read_bytes())
            earlier = before.pop("earlier")
            if before != now:
                earlier.append(before)
        write_atomic(self.versions, _pretty({**now, "earlier": earlier}))

    def write_sittings(self, sittings: Sequence[Sitting]) -> None:
        """Write sittings.json: every start so far, in order."""
        write_atomic(self.sittings, _pretty({"sittings": list(map(asdict, sittings))}))

    def read_sittings(self) -> tuple[Sitting, ...]:
        """Inverse of `write_sittings`; empty for a new run. Raises OutputError for any other content."""
        if not self.sittings.is_file():
            return ()
        record = _object(self.sittings, 1, self.sittings.read_bytes())
        try:
            return tuple(Sitting(**each) for each in record["sittings"])
        except (KeyError, TypeError) as error:
            raise OutputError(_broken(self.sittings, 1, str(error))) from error

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and flush it.

        A number that is not finite is written as null and counted in the line's `non_finite`: a single metric without a
        value must not end a run, nor make the file unreadable as strict JSON.
        """
        values = {name: value if _sound(value) else None for name, value in metrics.items()}
        lost = sum(not _sound(value) for value in metrics.values())
        append_whole(self.metrics, jsonl.encode({**values, "non_finite": lost}))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every complete line, in order. A last line that a crash cut short is left out.

        Raises OutputError if any other line is not a JSON object.
        """
        return [translated_line(line) for line in _read_lines(self.metrics)]

    def append_examples(self, step: int, instances: Sequence[str], key: str = "step") -> None:
        """Record in examples.jsonl the instances that a supervised step, or an iteration (`key`), learns from."""
        append_whole(self.examples, jsonl.encode({key: step, "instances": list(instances)}))

    def read_examples(self) -> list[dict[str, Any]]:
        """The lines of examples.jsonl, read like `read_metrics`."""
        return _read_lines(self.examples)

    def truncate_metrics(self, last: int, key: str = "iteration") -> None:
        """Remove what was recorded after `last`, so a resumed run's record has no duplicates.

        Drops the lines of metrics.jsonl and examples.jsonl whose `key` (iteration; step, for task=sft) is greater, and
        the lines, trajectories and evaluations of later iterations (steps) and of the end of a run. Lines without the
        key and without such a stage stay, since they come before the first step.
        """
        for path, lines in ((self.metrics, self.read_metrics()), (self.examples, self.read_examples())):
            kept = [line for line in lines if not _is_after(line, last, key)]
            if path.is_file():
                write_atomic(path, b"".join(map(jsonl.encode, kept)))
        self._truncate_evaluations(last)
        for path in self.trajectories.iterdir():
            match = _OF_ITERATION.fullmatch(path.name)
            if match and int(match[1]) > last:
                _remove(path)
            elsewhere = _OF_RETENTION.fullmatch(path.name)
            if elsewhere and _stage_is_after(elsewhere[1], last):
                _remove(path)
        _remove(self.path / spectrum.FILE)
        _remove(self.summary)
        _remove(self.report)

    def trajectories_file(self, name: str) -> Path:
        return self.trajectories / f"{name}.jsonl"

    def write_trajectories(self, name: str, trajectories: Iterable[Trajectory]) -> Path:
        """Write trajectories/<name>.jsonl, one episode per line; see rlpost.record.jsonl for the fields."""
        path = self.trajectories_file(name)
        write_atomic(path, b"".join(map(jsonl.to_line, trajectories)))
        return path

    def write_evaluation(
        self, stage: str, variant: str, decoding: str, trajectories: Iterable[Trajectory]
    ) -> Path:
        """Write an evaluation like `write_trajectories`, and list it in evaluations.jsonl."""
        path = self.write_trajectories(evaluation_name(stage, variant, decoding), trajectories)
        append_whole(self.evaluation_index, _index_line((stage, variant, decoding), path))
        return path

    def evaluations(self) -> dict[EvaluationKey, Path]:
        """The files of all evaluations, in the order in which they were written.

        Raises OutputError for a line of evaluations.jsonl that `write_evaluation` did not write.
        """
        if self.evaluation_index.is_file():
            lines = enumerate(_read_lines(self.evaluation_index), start=1)
            index = dict(self._indexed(number, line) for number, line in lines)
            return {key: path for key, path in index.items() if path.is_file()}
        named = {path: _EVALUATION.fullmatch(path.name) for path in sorted(self.trajectories.glob("eval-*"))}
        return {(m["stage"], unquote(m["variant"]), m["decoding"]): path for path, m in named.items() if m}

    def _indexed(self, number: int, line: Mapping[str, Any]) -> tuple[EvaluationKey, Path]:
        values = [line.get(name) for name in ("stage", "variant", "decoding", "file")]
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) < len(values) or Path(texts[-1]).name != texts[-1]:
            raise OutputError(_broken(self.evaluation_index, number, "it names no evaluation's file"))
        stage, variant, decoding, file = texts
        return (stage, variant, decoding), self.trajectories / file

    def _truncate_evaluations(self, last: int) -> None:
        """Remove evaluations at the end of a run and after iteration (step) `last`. An older record gets its index."""
        index = self.evaluations()
        gone = {key for key in index if _stage_is_after(key[0], last)}
        if index:
            kept = (_index_line(key, path) for key, path in index.items() if key not in gone)
            write_atomic(self.evaluation_index, b"".join(kept))
        for key in gone:
            _remove(index[key])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json. Raises ValueError if a number is not finite: a missing result must not look like one."""
        write_atomic(self.summary, _pretty(summary))

    def read_summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None if the run has not finished."""
        if not self.summary.is_file():
            return None
        return _object(self.summary, 1, self.summary.read_bytes())


def read_trajectories(path: Path) -> list[Trajectory]:
    """Inverse of `RunDir.write_trajectories`. Raises OutputError that names the broken line."""
    trajectories = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                trajectories.append(jsonl.from_line(line))
            except ValueError as error:
                raise OutputError(_broken(path, number, str(error))) from error
    return trajectories


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # the part after the last newline was cut short
    return [_object(path, number, line) for number, line in enumerate(lines, start=1)]


def _is_after(line: Mapping[str, Any], last: int, key: str) -> bool:
    """Whether the line was written by a step after `last`, or an evaluation after it."""
    if key in line:
        return bool(line[key] > last)
    return _stage_is_after(str(line.get("stage")), last)  # lines of examples.jsonl name no stage


def _stage_is_after(stage: str, last: int) -> bool:
    number = stage_number(stage)
    return stage == "after" or (number is not None and number > last)


def _index_line(key: EvaluationKey, path: Path) -> bytes:
    stage, variant, decoding = key
    return jsonl.encode({"stage": stage, "variant": variant, "decoding": decoding, "file": path.name})


def _sound(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _pretty(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise OutputError(_broken(path, number, str(error))) from error
    if not isinstance(record, dict):
        raise OutputError(_broken(path, number, "it holds no object"))
    return record


def _broken(path: Path, number: int, reason: str) -> str:
    return f"{path}\n  reason: line {number} cannot be read ({reason})\n  remedy: mend or delete the file"


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)
