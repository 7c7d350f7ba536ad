"""A run in this process, by the command line's own refusals and tasks; one at a time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpost.api.rows import lines_of
from rlpost.api.words import Rows
from rlpost.config.compose import compose
from rlpost.config.keys import refusal
from rlpost.config.overrides import Override, Word
from rlpost.config.schema import Config, Task
from rlpost.envs import caches, given
from rlpost.errors import ClusterError, ConfigError
from rlpost.record import tracking
from rlpost.record.files import write_atomic
from rlpost.record.folders import ROWS, reserved
from rlpost.record.run_dir import RunDir
from rlpost.run import Sigterm, dispatch, prepare
from rlpost.validate.checks import folders

OnMetrics = Callable[[dict[str, Any]], object]

_one_run = threading.Lock()  # Ray connects once in a process


def run(
    words: Sequence[Word],
    objects: Mapping[str, Any],
    rows: Rows | None,
    tasks: Sequence[Task],
    on_metrics: OnMetrics | None,
) -> Path:
    """Prepare and run as the command line does; returns the run's folder."""
    backends = {} if on_metrics is None else {"on_metrics": _Callback(on_metrics)}
    with (
        tracking.also(backends),
        _sigterm_as_interrupt(),
        prepared(words, objects, rows, tasks) as (config, _, folder),
    ):
        dispatch(config)
    return folder


@contextlib.contextmanager
def prepared(
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
                write_atomic(folder / ROWS, lines_of(rows))
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


class _Callback:
    """`on_metrics` as a tracker; evaluations are none of its lines."""

    def __init__(self, call: OnMetrics) -> None:
        self._call = call

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        if not over.startswith("eval/"):
            self._call(dict(metrics))

    def finish(self) -> None:
        """Nothing is left to send."""
