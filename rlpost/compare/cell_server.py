"""Runs cells one after another in one process, which keeps Ray and the engines between them. See served_cells.py.

    python -m rlpost.compare.cell_server DESCRIPTOR

    read a command line and a log ─▶ stdout and stderr go to that log ─▶ the run ─▶ answer, read the next
                                                                          └▶ not done: this process ends as the run did

DESCRIPTOR is a connected socket, on which each message is one cell. The process ends if the other end is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator

from rlpost import run
from rlpost.compare.served_cells import DONE, MESSAGE_BYTES
from rlpost.tasks.engines import kept


def main(argv: list[str]) -> int:
    """Returns 0, or the exit code of the first run that was not done. Its exceptions are passed on."""
    with socket.socket(fileno=int(argv[0])) as channel, kept():
        for words in _asked(channel):
            if code := run.main(words):
                return code
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the comparison was killed
                channel.send(DONE)
    return 0


def _asked(channel: socket.socket) -> Iterator[list[str]]:
    """The command lines to run. What this process prints goes to the log of the last one."""
    while True:
        try:
            message, logs, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
        except (
            ConnectionResetError,
            KeyboardInterrupt,
        ):  # the comparison was killed; SIGTERM between two cells
            return
        if not message:
            return
        for stream in (sys.stdout, sys.stderr):
            os.dup2(logs[0], stream.fileno())
        os.close(logs[0])
        words: list[str] = json.loads(message)
        yield words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
