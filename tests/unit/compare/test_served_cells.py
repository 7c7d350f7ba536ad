"""Cells that share a process, with a small program in place of the server: it does what a file beside the cell says."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from rlpost.compare import cells, served_cells
from rlpost.compare.cells import CellFiles, Ended, Process, Run, stop
from rlpost.compare.design.types import Status
from rlpost.compare.display import Display
from rlpost.compare.runner import Runner
from rlpost.compare.served_cells import CellServer, starter
from rlpost.config.schema import Config
from rlpost.errors import OutputError
from rlpost.weights.models import TINY, parameters
from tests.unit.compare.fake_run import comparison, write_record

DEADLINE_S = 60.0
DOES_WELL, FAILS, KILLED, WRITES_NOTHING, HANGS, WAITS_FOR_SUMMARY = range(6)
SERVER = f"""
import json, os, pathlib, re, signal, socket, sys, time
channel = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, logs, _, _ = socket.recv_fds(channel, 65536, 1)
    if not message:
        print("closes", flush=True)
        sys.exit(0)
    os.dup2(logs[0], 1), os.dup2(logs[0], 2)
    os.close(logs[0])
    experiment = re.match("experiment='(.*)'", json.loads(message)[0])[1]
    does = int(pathlib.Path(experiment).with_suffix(".does").read_text())
    run_dir = pathlib.Path(experiment).with_suffix("")
    print("pid", os.getpid(), flush=True)
    if does == {HANGS}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.fork()
        print("on", flush=True)
        time.sleep(300)
    if does == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)
    while does == {WAITS_FOR_SUMMARY} and not (run_dir / "summary.json").is_file():
        time.sleep(0.02)
    if does in ({DOES_WELL}, {FAILS}):
        run_dir.mkdir(parents=True, exist_ok=True)
    if does == {FAILS}:
        error = dict(type="LearnerError", message=["loss not finite"], remedy=[])
        (run_dir / "error.json").write_text(json.dumps(error))
        sys.exit(1)
    if does == {DOES_WELL}:
        (run_dir / "summary.json").write_text("{{}}")
    channel.send(b"done")
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CellServer]:
    monkeypatch.setattr(served_cells, "SERVER", (sys.executable, "-S", "-c", SERVER))
    server = CellServer()
    yield server
    server.close()


def begun(
    start: Callable[[CellFiles, Config], Run], folder: Path, name: str, does: int, cfg: Config | None = None
) -> Run:
    files = CellFiles(folder, name)
    files.log.parent.mkdir(exist_ok=True)
    files.log.with_suffix(".does").write_text(str(does))
    return start(files, cfg or Config(output_dir=str(files.run_dir.path)))


def ending(cell: Run) -> Ended:
    deadline = time.monotonic() + DEADLINE_S
    while (ended := cell.ended()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return ended


def pid_of(folder: Path, name: str) -> str:
    return CellFiles(folder, name).log.read_text().splitlines()[0]


def test_cells_share_a_process_and_each_has_its_own_log(server: CellServer, tmp_path: Path) -> None:
    for name in ("a-0", "b-0"):
        assert ending(begun(server.start, tmp_path, name, DOES_WELL)).status is Status.DONE
    assert pid_of(tmp_path, "a-0") == pid_of(tmp_path, "b-0")
    server.close()
    assert CellFiles(tmp_path, "a-0").log.read_text().count("\n") == 1
    assert CellFiles(tmp_path, "b-0").log.read_text().splitlines()[1:] == ["closes"]


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (FAILS, "LearnerError: loss not finite"),
        (KILLED, "ended by signal 9 (Killed)"),
    ],
)
def test_after_a_failure_the_next_cell_has_a_new_process(
    server: CellServer, tmp_path: Path, does: int, told: str
) -> None:
    assert ending(begun(server.start, tmp_path, "a-0", DOES_WELL)).status is Status.DONE
    failed = ending(begun(server.start, tmp_path, "b-0", does))
    assert (failed.status, failed.error) == (Status.FAILED, told)
    assert ending(begun(server.start, tmp_path, "c-0", DOES_WELL)).status is Status.DONE
    assert pid_of(tmp_path, "a-0") == pid_of(tmp_path, "b-0") != pid_of(tmp_path, "c-0")


def test_a_server_that_was_killed_between_cells_is_replaced(server: CellServer, tmp_path: Path) -> None:
    first = begun(server.start, tmp_path, "a-0", DOES_WELL)
    assert ending(first).status is Status.DONE
    first.kill()
    assert ending(begun(server.start, tmp_path, "b-0", DOES_WELL)).status is Status.DONE
    assert pid_of(tmp_path, "a-0") != pid_of(tmp_path, "b-0")


def test_done_without_a_summary_is_a_failure(server: CellServer, tmp_path: Path) -> None:
    failed = ending(begun(server.start, tmp_path, "a-0", WRITES_NOTHING))
    assert failed.error == "exit code 0 without summary.json; its console: cells/a-0.log"


def test_a_log_is_held_while_its_cell_runs_and_no_longer(server: CellServer, tmp_path: Path) -> None:
    assert ending(begun(server.start, tmp_path, "a-0", DOES_WELL)).status is Status.DONE
    running, other = begun(server.start, tmp_path, "b-0", HANGS), CellServer()
    wait_for(CellFiles(tmp_path, "b-0").log, "on")
    with pytest.raises(OutputError, match="still runs the cell b-0"):
        begun(other.start, tmp_path, "b-0", DOES_WELL)
    assert ending(begun(other.start, tmp_path, "a-0", DOES_WELL)).status is Status.DONE
    other.close()
    running.kill()


def test_stopping_asks_first_and_then_ends_all_below(
    server: CellServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = begun(server.start, tmp_path, "a-0", HANGS)
    wait_for(CellFiles(tmp_path, "a-0").log, "on")
    parent = psutil.Process(int(pid_of(tmp_path, "a-0").split()[1]))
    family = [parent, *parent.children()]
    assert len(family) == 2
    monkeypatch.setattr(cells, "STOP_S", 0.5)
    stop([cell])
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_server_that_does_not_close_is_killed(
    server: CellServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(server.start, tmp_path, "a-0", HANGS)
    wait_for(CellFiles(tmp_path, "a-0").log, "on")
    parent = psutil.Process(int(pid_of(tmp_path, "a-0").split()[1]))
    family = [parent, *parent.children()]
    monkeypatch.setattr(cells, "STOP_S", 0.5)
    server.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while word not in (log.read_text() if log.is_file() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "shared"),
    [({}, True), ({"compare.share_engines": False}, False), ({"ray.address": "auto"}, False)],
)
def test_who_shares(change: dict[str, object], shared: bool) -> None:
    cfg = Config()
    for key, value in change.items():
        group, _, name = key.partition(".")
        setattr(getattr(cfg, group), name, value)
    with starter(cfg, 1) as start:
        assert (start is not Process) == shared


@pytest.mark.usefixtures("server")
def test_cells_at_the_same_time_have_a_process_each_that_later_cells_take_over(tmp_path: Path) -> None:
    with starter(Config(), 2) as start:
        first, second = (begun(start, tmp_path, name, WAITS_FOR_SUMMARY) for name in ("a-0", "b-0"))
        write_record_of(tmp_path, "b-0")
        assert ending(second).status is Status.DONE
        assert ending(begun(start, tmp_path, "c-0", DOES_WELL)).status is Status.DONE
        assert first.ended() is None
        write_record_of(tmp_path, "a-0")
        assert ending(first).status is Status.DONE
    assert pid_of(tmp_path, "a-0") != pid_of(tmp_path, "b-0") == pid_of(tmp_path, "c-0")


def write_record_of(folder: Path, name: str) -> None:
    run_dir = CellFiles(folder, name).run_dir
    run_dir.path.mkdir(parents=True)
    run_dir.summary.write_text("{}")


def test_a_comparison_goes_on_after_failed_and_killed_cells_and_resumes(
    server: CellServer, tmp_path: Path
) -> None:
    first = compared(tmp_path, server, {"ppo-0": FAILS, "sft-1": KILLED})
    done = (Status.DONE, None)
    assert first == {
        "init-0": done,
        "ppo-0": (Status.FAILED, "LearnerError: loss not finite"),
        "sft-0": (Status.FAILED, "ppo-0 failed"),
        "init-1": done,
        "ppo-1": done,
        "sft-1": (Status.FAILED, "ended by signal 9 (Killed)"),
    }
    pids = [pid_of(tmp_path, name) for name in ("init-0", "ppo-0", "init-1", "ppo-1", "sft-1")]
    assert pids[0] == pids[1] != pids[2] == pids[3] == pids[4]
    assert compared(tmp_path, server, {}) == dict.fromkeys(first, done)
    assert len(CellFiles(tmp_path, "ppo-1").log.read_text().splitlines()) == 1, "it is not run again"


def compared(
    folder: Path, server: CellServer, failing: dict[str, int]
) -> dict[str, tuple[Status, str | None]]:
    """How each cell of a comparison ended. The records of those that do not fail are written here."""

    def start(files: CellFiles, cfg: Config) -> Run:
        cell = begun(server.start, folder, files.name, failing.get(files.name, WAITS_FOR_SUMMARY), cfg)
        if files.name not in failing:
            write_record(files.run_dir.path, cfg)
        return cell

    cfg, display = comparison(folder, "seeds=[0,1]"), Display(Console(file=io.StringIO()), 6, 1)
    runner = Runner(cfg, folder, parameters(TINY), display, lambda runner: None, start)
    runner.run(1)
    return {name: (ended.status, ended.error) for name, ended in runner.ended.items()}
