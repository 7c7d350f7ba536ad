"""A cell's process and its files, with small programs in place of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from rlpost.compare import cells
from rlpost.compare.cells import CellFiles, Ended, Process, refuse_changes, stop
from rlpost.compare.design.types import Status
from rlpost.config.schema import Config
from rlpost.errors import ConfigError, LearnerError, OutputError
from rlpost.record import checkpoint, run_error
from tests.unit import one_rank

DEADLINE_S = 60.0


@pytest.fixture
def files(tmp_path: Path) -> CellFiles:
    return CellFiles(tmp_path, "ppo-0")


def started(files: CellFiles, program: str, monkeypatch: pytest.MonkeyPatch) -> Process:
    monkeypatch.setattr(cells, "PROGRAM", (sys.executable, "-S", "-c", program))
    return Process(files, Config(output_dir=str(files.run_dir.path)))


def finished(files: CellFiles, program: str, monkeypatch: pytest.MonkeyPatch) -> Ended:
    process = started(files, program, monkeypatch)
    process.wait(time.monotonic() + DEADLINE_S)
    ended = process.ended()
    assert ended is not None
    return ended


def writes(path: Path) -> str:
    return f"from pathlib import Path; p = Path({str(path)!r}); p.parent.mkdir(parents=True); p.write_text('{{}}')"


def test_done_is_a_run_that_says_so_and_left_its_summary(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = finished(files, writes(files.run_dir.summary), monkeypatch)
    assert (ended.status, ended.error) == (Status.DONE, None)
    assert files.config.is_file()
    files.write_ended(ended)
    assert files.read_ended() == ended


def test_without_a_summary_it_failed(files: CellFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = finished(files, "pass", monkeypatch)
    assert ended.status is Status.FAILED
    assert ended.error == "exit code 0 without summary.json; its console: cells/ppo-0.log"


def fails_with(error: str, files: CellFiles) -> str:
    """A program that ends as a run does: its error in error.json and, in other words, on its console."""
    return (
        f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from rlpost.record import run_error;"
        f" from rlpost import errors; f = Path({str(files.run_dir.path)!r}); f.mkdir(parents=True, exist_ok=True);"
        f" k = run_error.kept(f); k.__enter__(); e = {error};"
        " print('a traceback', '^^^^^'); k.__exit__(type(e), e, None) or sys.exit(1)"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            r"errors.ModelError('model=x\n  reason: not there\n  remedy: try another')",
            "ModelError: model=x; reason: not there; remedy: try another",
        ),
        ("ZeroDivisionError('division by zero')", "ZeroDivisionError: division by zero"),
        (r"ValueError('actor\n  File x\n    1 / 0\n    ^^^^^\nKeyError: odd')", "ValueError: KeyError: odd"),
    ],
)
def test_the_reason_is_the_runs_error_and_not_its_console(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch, error: str, told: str
) -> None:
    ended = finished(files, fails_with(error, files), monkeypatch)
    assert "^^^^^" in files.log.read_text()
    assert (ended.status, ended.error) == (Status.FAILED, told)


def test_without_an_error_the_console_is_named_and_not_read(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = finished(files, "print('fine'); 1 / 0", monkeypatch)
    assert ended.error == "exit code 1 without error.json; its console: cells/ppo-0.log"


@pytest.mark.parametrize(("number", "told"), [(9, "signal 9 (Killed)"), (15, "signal 15 (Terminated)")])
def test_what_a_signal_ended_says_so(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    program = f"import os; print('fine'); os.kill(os.getpid(), {number})"
    assert finished(files, program, monkeypatch).error == f"ended by {told}"


def test_the_error_of_an_earlier_start_is_not_this_ones(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that fails before it takes up its folder, which has a checkpoint and the error of the start before."""
    run_dir = files.run_dir
    run_dir.checkpoints.mkdir(parents=True)
    run_dir.config.write_text("seed: 0\n")
    checkpoint.save(run_dir, 1, one_rank.write, {}, {})
    with pytest.raises(LearnerError), run_error.kept(run_dir.path):
        raise LearnerError("loss not finite")
    ended = finished(files, "raise SystemExit(1)", monkeypatch)
    assert ended.error == "exit code 1 without error.json; its console: cells/ppo-0.log"


def test_stopping_asks_first_and_then_ends_all_below(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaf = (
        "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork();"
        " print('on', flush=True); time.sleep(300)"
    )
    process = started(files, deaf, monkeypatch)
    deadline = time.monotonic() + DEADLINE_S
    while files.log.read_text().count("on") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent = psutil.Process(process._process.pid)
    family = [parent, *parent.children()]
    assert len(family) == 2
    monkeypatch.setattr(cells, "STOP_S", 0.5)
    stop([process])
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_cell_that_still_runs_is_not_started_twice(
    files: CellFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(files, "import time; time.sleep(300)", monkeypatch)
    with pytest.raises(OutputError, match="still runs the cell ppo-0"):
        started(files, "pass", monkeypatch)
    process.kill()
    assert finished(files, "pass", monkeypatch).status is Status.FAILED


def test_a_half_run_without_a_checkpoint_is_begun_again(files: CellFiles) -> None:
    (files.run_dir.path / "trajectories").mkdir(parents=True)
    files.run_dir.config.write_text("seed: 0\n")
    files.write_ended(Ended(Status.FAILED, "broke", 1.0))
    assert cells._prepare(files, Config()) == [f"experiment='{files.config}'"]
    assert not files.run_dir.path.exists()
    assert files.read_ended() is None


def test_a_half_run_with_a_checkpoint_goes_on(files: CellFiles) -> None:
    run_dir = files.run_dir
    run_dir.checkpoints.mkdir(parents=True)
    run_dir.config.write_text("seed: 0\n")
    checkpoint.save(run_dir, 1, one_rank.write, {}, {})
    arguments = cells._prepare(files, Config())
    assert arguments == [f"experiment='{files.config}'", f"resume='{run_dir.path}'"], (
        "settings as they are now"
    )
    assert run_dir.config.is_file()


def test_a_cell_planned_otherwise_is_refused_and_the_difference_named(files: CellFiles) -> None:
    refuse_changes(files, Config())
    files.config.parent.mkdir()
    cells._prepare(files, Config())
    refuse_changes(files, Config(output_dir="elsewhere"))
    other = Config()
    other.algo.clip = 0.3
    with pytest.raises(ConfigError, match=r"algo\.clip=0\.3 \(was 0\.2\)"):
        refuse_changes(files, other)


def test_its_own_start_may_have_been_moved_but_another_is_another(files: CellFiles) -> None:
    files.config.parent.mkdir()
    cells._prepare(files, Config(adapter="/before/cells/init-0/adapter"))
    refuse_changes(files, Config(adapter=str(files.folder / "cells/init-0/adapter")))
    with pytest.raises(ConfigError, match=r"adapter=/other/adapter \(was /before/"):
        refuse_changes(files, Config(adapter="/other/adapter"))


def test_an_ending_that_cannot_be_read_is_refused(files: CellFiles) -> None:
    files.ended.parent.mkdir(parents=True)
    files.ended.write_text('{"status": "splendid"}')
    with pytest.raises(OutputError, match="cannot be read"):
        files.read_ended()
