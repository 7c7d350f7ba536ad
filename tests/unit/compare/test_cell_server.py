"""The process that runs cells one after another, with a stand-in for a run: it ends as its first word says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import sys
from rlpost.compare import cell_server

def run(words):
    print("runs", *words)
    print("and says why", file=sys.stderr)
    return int(words[0])

cell_server.run.main = run
sys.exit(cell_server.main(sys.argv[1:]))
"""
DEADLINE_S = 300.0


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE_S)
        with its, (folder / "start.log").open("wb") as log:
            command = [sys.executable, "-c", PROGRAM, str(its.fileno())]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[its.fileno()])

    def ask(self, *words: str, log: str) -> bytes:
        """Its answer; empty if it ends instead."""
        with (self.folder / log).open("ab") as file:
            socket.send_fds(self.channel, [json.dumps(words).encode()], [file.fileno()])
        return self.channel.recv(100)

    def lines(self, log: str) -> list[str]:
        return (self.folder / log).read_text().splitlines()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.channel.close()
    server.process.kill()
    server.process.wait()


def test_each_run_prints_to_its_own_log_until_there_is_no_further_one(server: Server) -> None:
    for word in ("first", "second"):
        assert server.ask("0", word, log=word) == b"done"
        assert sorted(server.lines(word)) == ["and says why", f"runs 0 {word}"]
    server.channel.close()
    assert server.process.wait(DEADLINE_S) == 0
    assert server.lines("start.log") == []


@pytest.mark.parametrize(("word", "code", "told"), [("3", 3, "and says why"), ("odd", 1, "ValueError: ")])
def test_it_ends_as_the_first_run_that_was_not_done(server: Server, word: str, code: int, told: str) -> None:
    assert server.ask(word, log="log") == b""
    assert server.process.wait(DEADLINE_S) == code
    assert any(line.startswith(told) for line in server.lines("log"))
