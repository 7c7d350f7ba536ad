"""One cell: an ordinary run of rlpost, here in its own process, and the files it leaves.

cells/NAME.yaml   every setting; `python -m rlpost.run experiment=cells/NAME.yaml` runs the cell by hand
cells/NAME/       its run directory            cells/NAME.log    its console output
cells/NAME.json   how it ended; absent while it runs, and if it was stopped
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rlpost.cluster.processes import kill_tree
from rlpost.compare.design.plan import run_dir_of
from rlpost.compare.design.types import Status
from rlpost.config.compose import to_yaml
from rlpost.config.former_words import translated
from rlpost.config.overrides import override
from rlpost.config.schema import Config
from rlpost.config.yaml_files import parse_mapping, read_mapping
from rlpost.errors import ConfigError, OutputError
from rlpost.record import checkpoint, run_error
from rlpost.record.files import write_atomic, writing
from rlpost.record.run_dir import RunDir

PROGRAM = (sys.executable, "-m", "rlpost.run")
STOP_S = 90.0  # seconds in which a stopped run must close its engines and its cluster
_ELSEWHERE = ("output_dir", "ray", "tracking")  # settings that may change between two starts
_COLUMNS = "160"  # console width of a run without a terminal


@dataclass(frozen=True)
class Ended:
    """How a cell ended."""

    status: Status
    error: str | None
    seconds: float  # duration of the last start only


@dataclass(frozen=True)
class CellFiles:
    """The paths of a cell's files."""

    folder: Path  # the comparison's folder
    name: str

    @property
    def run_dir(self) -> RunDir:
        return RunDir(run_dir_of(self.folder, self.name))

    @property
    def config(self) -> Path:
        return self._beside(".yaml")

    @property
    def log(self) -> Path:
        return self._beside(".log")

    @property
    def ended(self) -> Path:
        return self._beside(".json")

    def _beside(self, suffix: str) -> Path:
        return self.run_dir.path.parent / f"{self.name}{suffix}"

    def read_ended(self) -> Ended | None:
        """How the cell ended; None if it has not. Raises OutputError if this module did not write the file."""
        if not self.ended.is_file():
            return None
        try:
            fields = json.loads(self.ended.read_bytes())
            return Ended(**{**fields, "status": Status(fields["status"])})
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{self.ended}\n  reason: it cannot be read ({error})\n  remedy: delete it; the cell then runs again"
            ) from error

    def write_ended(self, ended: Ended) -> None:
        write_atomic(self.ended, (json.dumps(asdict(ended)) + "\n").encode())


class Run(Protocol):
    """A running cell."""

    files: CellFiles

    @property
    def seconds(self) -> float:
        """Seconds since the start."""

    def ended(self) -> Ended | None:
        """How the cell ended; None while it runs."""

    def ask_to_stop(self) -> None: ...

    def wait(self, deadline: float) -> None:
        """Wait until the cell ends, or until `deadline` (of time.monotonic)."""

    def kill(self) -> None:
        """Kill the process. Does nothing if it has ended."""


class Process:
    """The process of a cell. It resumes from the last complete checkpoint, or starts anew if there is none.

    Raises OutputError if a file cannot be written, or if a process of an earlier comparison, which was killed, still
    runs the cell.
    """

    def __init__(self, files: CellFiles, cfg: Config) -> None:
        self.files, self.began = files, time.monotonic()
        with beginning(files, cfg) as (words, log):
            self._process = launch([*PROGRAM, *words], log)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ended(self) -> Ended | None:
        """How the cell ended; None while it runs."""
        code = self._process.poll()
        return None if code is None else ended_with(self.files, code, self.seconds)

    def ask_to_stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process with all its children. Does nothing if it has ended."""
        kill_tree(self._process)

    def wait(self, deadline: float) -> None:
        """Wait until the cell ends, or until `deadline` (of time.monotonic)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def beginning(files: CellFiles, cfg: Config) -> Iterator[tuple[list[str], BinaryIO]]:
    """Prepare the cell's files; the arguments of its start, and its log, which is locked for whoever inherits it."""
    with writing(files.log):
        files.log.parent.mkdir(parents=True, exist_ok=True)
    with writing(files.log), files.log.open("ab") as log:
        _hold(files, log)
        yield _prepare(files, cfg), log


def launch(command: Sequence[str], log: BinaryIO, keep: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process that writes to `log` and inherits the descriptors `keep`.

    It gets its own session, so that Ctrl-C reaches the comparison alone, which stops its cells in order.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": _COLUMNS},
        start_new_session=True,
        pass_fds=keep,
    )


def ended_with(files: CellFiles, code: int, seconds: float) -> Ended:
    """How a cell ended whose start returned the exit code `code`; below 0 it is a signal's number."""
    if code == 0 and files.run_dir.summary.is_file():
        return Ended(Status.DONE, None, seconds)
    return Ended(Status.FAILED, _reason(files, code), seconds)


def stop(running: Iterable[Run]) -> None:
    """Stop running cells; kill those that take longer than STOP_S. They can be resumed."""
    cells, deadline = list(running), time.monotonic() + STOP_S
    try:
        for cell in cells:
            cell.ask_to_stop()
        for cell in cells:
            cell.wait(deadline)
    finally:  # also if a second Ctrl-C arrives while they close
        for cell in cells:
            cell.kill()


def refuse_changes(files: CellFiles, cfg: Config) -> None:
    """Raises ConfigError if the cell was planned earlier with other settings, and names these."""
    if not files.config.is_file():
        return
    before = _leaves(translated(read_mapping(files.config)))
    now = _leaves(parse_mapping(to_yaml(cfg), "this start"))
    keys = before.keys() | now.keys()
    if cfg.adapter is not None and Path(cfg.adapter).is_relative_to(files.folder):
        keys.discard("adapter")  # the comparison's own start adapter, whose folder may have been moved
    changed = sorted(key for key in keys if before.get(key) != now.get(key))
    if changed:
        said = "; ".join(f"{key}={now.get(key)} (was {before.get(key)})" for key in changed)
        raise ConfigError(
            f"{files.config}\n  reason: the cell was planned under other settings: {said}\n"
            "  remedy: resume with the settings of the comparison's config.yaml, or start a new comparison"
        )


def _leaves(settings: dict[str, Any]) -> dict[str, object]:
    leaves: dict[str, object] = {}

    def walk(node: object, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, inner in node.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif key.partition(".")[0] not in _ELSEWHERE:
            leaves[key] = node

    walk(settings, "")
    return leaves


def _hold(files: CellFiles, log: BinaryIO) -> None:
    """Lock the log. The cell's process inherits the lock, so it is held as long as any process writes to the log."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{files.log}\n  reason: a process of an earlier start still runs the cell {files.name}\n"
            "  remedy: wait for it, or end it"
        ) from None


def _prepare(files: CellFiles, cfg: Config) -> list[str]:
    """Prepare the cell's folder for its next start, and return the arguments of that start."""
    run_dir, settings = files.run_dir, override("experiment", files.config)
    with writing(files.config):
        files.ended.unlink(missing_ok=True)
        # The run removes its earlier error itself, but may end before it gets that far.
        (files.run_dir.path / run_error.FILE).unlink(missing_ok=True)
        write_atomic(files.config, to_yaml(cfg).encode())
        if run_dir.config.is_file() and checkpoint.exists(run_dir):
            return [settings, override("resume", run_dir.path)]
        if run_dir.path.exists():
            shutil.rmtree(run_dir.path)
    return [settings]


def _reason(files: CellFiles, code: int) -> str:
    """Why the process that ended with `code` is not done. Its console output is for people and is not parsed."""
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    error = run_error.read(files.run_dir.path)
    if error is not None:
        return str(error)
    lacking = run_error.FILE if code else files.run_dir.summary.name
    return f"exit code {code} without {lacking}; its console: {files.log.relative_to(files.folder)}"
