"""Serving with a stand-in for vLLM's server: its command line, signals, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlpost.command.main import main
from rlpost.record.run_dir import RunDir
from rlpost.weights.models import TINY
from tests.unit.verbs import recorded

# Says that it is there, with a child that outlives it unless somebody ends that; obeys SIGINT, or does not.
STAND_IN = """
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
if "--fails" in sys.argv:
    sys.exit(3)
pathlib.Path(sys.argv[sys.argv.index("--there") + 1]).write_text(f"{child.pid} {' '.join(sys.argv[1:])}")
time.sleep(120)
"""
MAIN = """
import sys
from rlpost.command.main import main
from rlpost.verbs import serve
serve.SERVER, serve.STOP_S, serve.GRACE_S = "stand_in", 1.0, 0.2
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = recorded.run(tmp_path_factory.mktemp("serve") / "run")
    recorded.adapter_for(TINY, str(TINY)).save(run_dir.adapter)
    return run_dir


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where temporary folders go: a short path, as sockets need."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    with tempfile.TemporaryDirectory(prefix="verbs-", dir="/tmp") as name:
        yield Path(name)


def started(
    run_dir: RunDir, place: Path, tmp_path: Path, *options: str
) -> tuple[subprocess.Popen[str], Path]:
    there = tmp_path / "there"
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(run_dir.path), "--there", str(there), *options],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, there


def waited_for(there: Path, process: subprocess.Popen[str]) -> list[str]:
    deadline = time.monotonic() + 120
    while not (there.is_file() and there.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return there.read_text().split()


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("options", "number", "code"),
    [((), signal.SIGINT, 130), (("--stubborn",), signal.SIGINT, 130), ((), signal.SIGTERM, 143)],
)
def test_a_signal_ends_the_server_its_children_and_the_copy(
    run_dir: RunDir, place: Path, tmp_path: Path, options: tuple[str, ...], number: int, code: int
) -> None:
    process, there = started(run_dir, place, tmp_path, *options)
    child, *words = waited_for(there, process)
    model = Path(words[words.index("--model") + 1])
    assert (model / "config.json").is_file()
    assert model.is_relative_to(place)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert not is_alive(int(child))
    assert list(place.iterdir()) == []


def test_a_server_that_fails_is_said_and_a_given_folder_stays(
    run_dir: RunDir, place: Path, tmp_path: Path
) -> None:
    process, _ = started(run_dir, place, tmp_path, "--folder", str(tmp_path / "kept"), "--fails")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "vLLM's server ended with code 3" in output
    assert (tmp_path / "kept" / "model.safetensors").is_file()
    assert list(place.iterdir()) == []


def test_the_server_has_the_engines_settings_and_the_users_options_last(
    run_dir: RunDir, place: Path, tmp_path: Path
) -> None:
    process, there = started(run_dir, place, tmp_path, "--max-num-seqs", "7", "--port", "8123")
    _, *words = waited_for(there, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    told = " ".join(words)
    for expected in (
        *(
            "--served-model-name run",
            "--host 127.0.0.1",
            "--port 8123",
            "--dtype float32",
            "--max-model-len 2048",
        ),
        *("--logprobs-mode processed_logprobs", "--generation-config vllm", "--no-enable-chunked-prefill"),
    ):
        assert expected in told
    assert told.index("--max-num-seqs 128") < told.index("--max-num-seqs 7")
    assert "--worker-extension-cls" not in told


def refused(capsys: pytest.CaptureFixture[str], code: int, *argv: str | int | Path) -> str:
    assert main(["serve", *map(str, argv)]) == code
    return capsys.readouterr().err


def test_refusals(run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a run" in refused(capsys, 1, tmp_path)
    assert "there is no such port" in refused(capsys, 2, run_dir.path, "--port", "0")
    assert "one RUN is served at a time" in refused(capsys, 2, run_dir.path, "other")
    assert "it is there already" in refused(capsys, 1, run_dir.path, "--folder", tmp_path)
    assert "two tokens at least" in refused(capsys, 2, run_dir.path, "--max-model-len", "1")
    assert "somebody must compute" in refused(capsys, 2, run_dir.path, "--threads", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "nothing can listen there (Address already in use)" in refused(
            capsys, 1, run_dir.path, "--port", port
        )
    assert "nothing can listen there" in refused(capsys, 1, run_dir.path, "--host", "192.0.2.1")
