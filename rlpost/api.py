"""rlpost from Python: `train`, `evaluate` and `open_run` (docs/api.md), the names that `import rlpost` offers.

    train(...) ─▶ words of a command line + objects ─▶ rlpost.run.prepare ─▶ dispatch ─▶ Run
                  reward=f: env_args.score=given:f     same refusals         same tasks  a view of the record

Environments and functions are given as objects (rlpost/envs/given.py), rows as a list, which becomes a file of the
record. Errors are those of rlpost.errors, raised as they are.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from omegaconf import OmegaConf

from rlpost import errors
from rlpost.config.compose import compose
from rlpost.config.keys import leaves, refusal
from rlpost.config.overrides import SHORT, Override, Word
from rlpost.config.schema import Config, Task
from rlpost.config.trust import refuse_unnamed_code
from rlpost.envs import caches, given
from rlpost.errors import ClusterError, ConfigError, OutputError, RlpostError
from rlpost.record import run_error, tracking
from rlpost.record.files import write_atomic
from rlpost.record.run_dir import CONSOLE, ROWS, RunDir, read_trajectories, reserved
from rlpost.record.run_error import RunError
from rlpost.record.summary import headlines
from rlpost.run import Sigterm, dispatch, prepare
from rlpost.types import Trajectory
from rlpost.validate.checks import folders

if TYPE_CHECKING:
    from rlpost.background import Process

Rows = Iterable[Mapping[str, Any]]
TRAINING = (Task.rl, Task.sft)
STOP_S = 90.0  # that a run has to close its engines and its cluster

Function = Callable[..., Any]
OnMetrics = Callable[[dict[str, Any]], object]

_one_run = threading.Lock()  # Ray connects once in a process


def train(
    experiment: str | Path | None = None,
    *,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    reward_model: str | Function | None = None,
    settings: Mapping[str, Any] | None = None,
    on_metrics: OnMetrics | None = None,
    resume: str | Path | None = None,
) -> Run:
    """Train as `rlpost experiment=...` does, in this process; returns when the run is over.

    Args:
        experiment: a name of experiments/, or a file of one's own (.yaml). Not needed with `resume`.
        env: the environment: a name as on the command line, or a class that derives from gymnasium.Env.
        data: rows of a data set (`env=dataset`): a path as in env_args.path, or the rows, each a JSON object.
        reward: what scores answers to the rows: a function, a name as in env_args.score, or a list of these.
        reward_model: gives an iteration's episodes other rewards (algo.reward_function): list of Trajectory to the
            same with other rewards. It runs in this process.
        settings: every other setting: {"algo.iterations": 3}, or nested.
        on_metrics: called with the figures of each iteration and supervised step, as metrics.jsonl has them. What it
            raises is warned of once and ends the calls, not the run.
        resume: the folder of a run to go on with. Objects that it was given are given again.

    Raises:
        ConfigError: settings, rows or objects are refused; nothing has started.
        RlpostError: the run failed; its record has what was done. `rlpost.errors` has the kinds.
        KeyboardInterrupt: Ctrl-C. The record stays, and can be resumed.
    """
    handover = given.Handover()
    words = _words(experiment, resume, settings, _named(handover, env, data, reward, reward_model))
    return _run(words, handover.objects, _rows(data), TRAINING, on_metrics)


def start(
    experiment: str | Path | None = None,
    *,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    reward_model: str | Function | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
) -> Started:
    """Train in a process of its own; returns at once. Arguments and refusals are those of `train`.

    The run ends with this process, if not before. What it prints is in `console.log` of its folder.
    """
    from rlpost.background import Process

    handover = given.Handover()
    words = _words(experiment, resume, settings, _named(handover, env, data, reward, reward_model))
    with _prepared(words, handover.objects, _rows(data), TRAINING) as (_, whole, folder):
        process = Process(whole, handover.objects, folder)
    return Started(folder, handover.objects, _trusted=True, _process=process)


def evaluate(
    experiment: str | Path,
    *,
    adapter: str | Path | None = None,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Evaluate an adapter in PEFT's format, or without one the bare model, as `task=eval` does; see `train`."""
    handover = given.Handover()
    named = {**_named(handover, env, data, reward, None), "task": Task.eval}
    if adapter is not None:
        named["adapter"] = adapter
    words = _words(experiment, None, settings, named)
    return _run(words, handover.objects, _rows(data), (Task.eval,), None)


def open_run(path: str | Path) -> Run:
    """An earlier run, or one that is in progress elsewhere, by its folder. Raises OutputError where that is none."""
    run = Run(Path(path))
    if not run._record.config.is_file():
        raise OutputError(
            f"{path}\n  reason: it is no run directory (config.yaml is missing)\n"
            "  remedy: name the folder that an earlier run printed"
        )
    return run


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str  # start, before, rl, ... as in metrics.jsonl; finished or failed at the end
    step: int  # iterations, or for task=sft steps, that are done
    total: int | None  # of these; None where a budget decides, and where the task takes none


@dataclass(frozen=True)
class Run:
    """A run's record, read anew each time: it may be in progress. `path` is its folder."""

    path: Path
    _objects: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what Python gave it
    _trusted: bool = field(default=False, repr=False)  # whether this process has run the code that it names

    @property
    def _record(self) -> RunDir:
        return RunDir(self.path)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, nested, as config.yaml has it."""
        found = OmegaConf.to_container(self._record.read_config())
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `stage` says of what; those of iterations have `iteration` (docs/metrics.md)."""
        return self._record.read_metrics()

    @property
    def adapter(self) -> Path:
        """The trained adapter's folder, which PEFT loads. Raises OutputError where there is none yet."""
        folder = self._record.adapter
        if not (folder / "adapter_config.json").is_file():
            raise OutputError(
                f"{folder}\n  reason: there is no adapter: the run is not finished, or trained none\n"
                f"  remedy: train(resume={str(self.path)!r}) finishes a run that was interrupted"
            )
        return folder

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result: success by stage, variant and decoding, with intervals; None until the run is finished."""
        return self._record.read_summary()

    @property
    def findings(self) -> list[str]:
        """What may be said of the result, a sentence each, with intervals; empty until the run is finished."""
        summary = self.summary
        return [] if summary is None else headlines(summary)

    @property
    def report(self) -> Path:
        """The page of the run. Raises OutputError where it is not written yet."""
        if not self._record.report.is_file():
            raise OutputError(
                f"{self._record.report}\n  reason: the run is not finished\n  remedy: rlpost report RUN writes the"
                " page of a run in progress"
            )
        return self._record.report

    @property
    def error(self) -> RunError | None:
        """What ended the last start of the run; None where nothing did, and for Ctrl-C."""
        return run_error.read(self.path)

    @property
    def progress(self) -> Progress:
        if not self._record.config.is_file():  # of a run that `start` has just started
            return Progress("start" if self.error is None else "failed", 0, None)
        settings, lines = self.settings, self.metrics
        sft = settings["task"] == Task.sft.value
        total: int | None = settings["sft"]["steps"] if sft else settings["algo"]["iterations"]
        if settings["budget"]["amounts"] or settings["task"] not in (Task.rl.value, Task.sft.value):
            total = None
        done = [
            line["step" if sft else "iteration"] for line in lines if ("step" if sft else "iteration") in line
        ]
        if self.error is not None:
            stage = "failed"
        elif self._record.summary.is_file():
            stage = "finished"
        else:
            stage = str(lines[-1]["stage"]) if lines else "start"
        return Progress(stage, max(done, default=-1) + 1, total)

    @property
    def episode_files(self) -> list[str]:
        """The names that `episodes` takes: iteration-000002, eval-after-default-greedy and so on."""
        return sorted(path.stem for path in self._record.trajectories.glob("*.jsonl"))

    def episodes(self, name: str) -> list[Trajectory]:
        """Episodes as they were played. Raises OutputError for a name that is not in `episode_files`."""
        if name not in self.episode_files:
            there = ", ".join(self.episode_files) or "none"
            raise OutputError(f"{self.path}: {name}\n  reason: no such episodes\n  remedy: there are {there}")
        return read_trajectories(self._record.trajectories_file(name))

    def evaluate(
        self,
        *,
        env: str | type[gymnasium.Env[Any, Any]] | None = None,
        data: str | Path | None = None,
        reward: str | Function | Sequence[str | Function] | None = None,
        eval_variants: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Evaluate the run's adapter under its own settings, but for those that are given here: another run.

        A run that `open_run` has opened may be somebody else's: code that its record names is given again, by `env` or
        `reward`, which says that it is trusted. Raises ConfigError otherwise, and as `rlpost.evaluate`.
        """
        handover = given.Handover()
        named: dict[str, Any] = {
            "task": Task.eval,
            "adapter": self.adapter,
            **_named(handover, env, data, reward, None),
        }
        if eval_variants is not None:
            named["eval_variants"] = eval_variants
        words = _words(self._record.config, None, {"output_dir": None, **(settings or {})}, named)
        if not self._trusted:
            overrides = [word for word in words if isinstance(word, Override)]
            # An evaluation calls no reward model.
            trusted = {"algo.reward_function", *(each.key for each in overrides)}
            refuse_unnamed_code(compose(words), trusted, self._record.config)
        return _run(words, {**self._objects, **handover.objects}, None, (Task.eval,), None)


@dataclass(frozen=True)
class Started(Run):
    """A run in a process of its own."""

    _process: Process | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._own.exit_code is None

    def wait(self, timeout_s: float | None = None) -> Run:
        """The run, when it is over. Every wait within it has a deadline of its own.

        Raises:
            TimeoutError: it is not over after `timeout_s`; it goes on.
            RlpostError: it failed, with an error of this kind of `rlpost.errors`, or was stopped.
        """
        code = self._own.wait(timeout_s)
        if code is None:
            raise TimeoutError(f"the run in {self.path} is not over after {timeout_s:g} s")
        if code == 0:
            return Run(self.path, self._objects, self._trusted)
        told = self.error
        if told is None:
            raise RlpostError(
                f"{self.path}\n  reason: the run was stopped, or killed (exit code {code})\n"
                f"  remedy: train(resume={str(self.path)!r}) goes on with it; {CONSOLE} has what it said"
            )
        kind = getattr(errors, told.type, RlpostError)
        lines = (*told.message, *(f"  {line}" for line in told.remedy))
        raise kind(
            "\n".join(lines if kind.__name__ == told.type else (f"{told.type}: {lines[0]}", *lines[1:]))
        )

    def stop(self) -> None:
        """End the run as Ctrl-C does, by force after 90 s. It can be resumed. Nothing where it is over."""
        self._own.stop(STOP_S)

    @property
    def _own(self) -> Process:
        assert self._process is not None, "made by `start`"
        return self._process


def _rows(data: str | Path | Rows | None) -> Rows | None:
    """Rows that are given as objects; None where they are in a file."""
    return None if isinstance(data, (str, Path)) else data


def _named(
    handover: given.Handover,
    env: object,
    data: object,
    reward: object,
    reward_model: object,
) -> dict[str, Any]:
    """Settings for what was given as an object, by key."""
    named: dict[str, Any] = {}
    if env is not None:
        named["env"] = env if isinstance(env, str) else handover.reference(_env_class(env))
    if data is not None:
        if env not in (None, "dataset"):
            raise ConfigError(
                refusal("data", "...", "rows are played by env=dataset", "leave env= out, or data=")
            )
        named["env"] = "dataset"
        if isinstance(data, (str, Path)):
            named["env_args.path"] = data
    if reward is not None:
        if isinstance(reward, Sequence) and not isinstance(reward, str):
            named["env_args.score"] = [_function(handover, "reward", each) for each in reward]
        else:
            named["env_args.score"] = _function(handover, "reward", reward)
    if reward_model is not None:
        named["algo.reward_function"] = _function(handover, "reward_model", reward_model)
    return named


def _env_class(env: object) -> type:
    if not (isinstance(env, type) and issubclass(env, gymnasium.Env)):
        what = "an environment" if isinstance(env, gymnasium.Env) else repr(env)
        raise ConfigError(
            refusal(
                "env",
                what,
                "it is no class that derives from gymnasium.Env",
                "give the class, of which each worker makes its own, and its arguments as settings={'env_args': ...}",
            )
        )
    return env


def _function(handover: given.Handover, key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, type) or not callable(value):
        raise ConfigError(refusal(key, repr(value), "it is no function", "give a function, or module:name"))
    return handover.reference(value)


def _words(
    experiment: str | Path | None,
    resume: str | Path | None,
    settings: Mapping[str, Any] | None,
    named: Mapping[str, Any],
) -> list[Word]:
    """The command line that says the same. Raises ConfigError for what is given twice, or is no setting's value."""
    typed = {SHORT.get(key, key): value for key, value in leaves(dict(settings or {}))}
    starts = {
        key: value for key, value in (("experiment", experiment), ("resume", resume)) if value is not None
    }
    if both := sorted(typed.keys() & {**named, **starts}.keys()):
        raise ConfigError(
            refusal(
                both[0], typed[both[0]], "it is given twice, here and by another argument", "give it once"
            )
        )
    return [
        Override(key, str(value), _value(key, value)) for key, value in {**starts, **typed, **named}.items()
    ]


def _value(key: str, value: Any) -> Any:
    """What a YAML file would say. Raises ConfigError for what it cannot."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _value(f"{key}.{name}", each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(key, each) for each in value]
    raise ConfigError(
        refusal(
            key,
            repr(value),
            f"no setting takes a value of type {type(value).__name__}",
            "give text, numbers, lists or dicts of these; classes and functions as env=, reward= and reward_model=",
        )
    )


def _run(
    words: Sequence[Word],
    objects: Mapping[str, Any],
    rows: Rows | None,
    tasks: Sequence[Task],
    on_metrics: OnMetrics | None,
) -> Run:
    """Prepare and run as the command line does."""
    backends = {} if on_metrics is None else {"on_metrics": _Callback(on_metrics)}
    with (
        tracking.also(backends),
        _sigterm_as_interrupt(),
        _prepared(words, objects, rows, tasks) as (config, _, folder),
    ):
        dispatch(config)
    return Run(folder, dict(objects), _trusted=True)


@contextlib.contextmanager
def _prepared(
    words: Sequence[Word], objects: Mapping[str, Any], rows: Rows | None, tasks: Sequence[Task]
) -> Iterator[tuple[Config, list[Word], Path]]:
    """The configuration, checked, with the command line that says it and the folder of the run.

    The objects are handed over within the `with`, and no other run of this process begins.
    """
    from rlpost.cluster.user_modules import refuse_unpicklable

    with _alone(), given.handed_over(objects):
        caches.forget()
        config = compose(words)
        _refuse_task(config, tasks)
        refuse_unpicklable(objects)
        if config.resume is not None:
            if rows is not None:
                raise ConfigError(
                    refusal("data", "...", "a resumed run has its rows in its record", "leave data= out")
                )
            yield prepare(words), list(words), Path(config.resume)
            return
        with _folder(config) as folder:
            whole = [*words, Override("output_dir", str(folder), str(folder))]
            if rows is not None:
                path = str((folder / ROWS).resolve())
                write_atomic(folder / ROWS, _lines(rows))
                whole.append(Override("env_args.path", path, path))
            yield prepare(whole), whole, folder


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Raises ClusterError where another run is in progress in this process."""
    if not _one_run.acquire(blocking=False):
        raise ClusterError(
            "Another run is in progress in this process, which can be connected to Ray once.\n"
            "  remedy: wait for it, or start this one in a process of its own"
        )
    try:
        yield
    finally:
        _one_run.release()


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End a run by SIGTERM as by Ctrl-C, with KeyboardInterrupt, unless this process has a handler of its own."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, Sigterm())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refuse_task(config: Config, tasks: Sequence[Task]) -> None:
    if config.task not in tasks:
        here = " and ".join(task.name for task in tasks)
        raise ConfigError(
            refusal("task", config.task.name, f"this function runs {here}", "start it on the command line")
        )


@contextlib.contextmanager
def _folder(config: Config) -> Iterator[Path]:
    """The folder of the run to be. It is gone again where an error comes before a run has begun in it.

    Raises ConfigError, OutputError.
    """
    if refusals := list(folders(config)):
        raise ConfigError("\n".join(refusals))
    was_there = config.output_dir is not None and Path(config.output_dir).is_dir()
    folder = reserved(config.output_dir, config.name, config.seed)
    try:
        yield folder
    except BaseException:
        if not RunDir(folder).config.is_file():
            (folder / ROWS).unlink(missing_ok=True)
            if not was_there:
                with contextlib.suppress(OSError):  # whatever else is there by now is not ours
                    folder.rmdir()
        raise


def _lines(rows: Rows) -> bytes:
    """The rows as JSONL. Raises ConfigError for one that is no JSON object, by its number."""
    return b"".join(_line(number, row) for number, row in enumerate(rows))


def _line(number: int, row: object) -> bytes:
    if not isinstance(row, Mapping):
        raise _bad_row(number, f"it is of type {type(row).__name__}, not a dict")
    if path := next(_not_json(dict(row), ""), None):
        raise _bad_row(number, path)
    return (json.dumps(dict(row), ensure_ascii=True) + "\n").encode()


def _bad_row(number: int, reason: str) -> ConfigError:
    return ConfigError(
        refusal(f"data[{number}]", "...", reason, "rows hold what JSON can: see docs/tutorial.md")
    )


def _not_json(value: Any, where: str) -> Iterator[str]:
    """What in a value would not come back from JSON as it was, in words."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                yield f"its key {key!r}{where} is no text"
            yield from _not_json(each, f" of field {key!r}{where}")
    elif isinstance(value, list):
        for each in value:
            yield from _not_json(each, where)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"a value{where} is {value}"
    elif value is not None and type(value) not in (str, bool, int, float):
        yield f"a value{where} is of type {type(value).__name__}, which JSON has not"


class _Callback:
    """`on_metrics` as a tracker; evaluations are none of its lines."""

    def __init__(self, call: OnMetrics) -> None:
        self._call = call

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        if not over.startswith("eval/"):
            self._call(dict(metrics))

    def finish(self) -> None:
        """Nothing is left to send."""
