"""Cells that share a process, and in it Ray, the engines and what was imported.

    CellServer.start ─▶ arguments, the cell's log ─▶ the process (cell_server.py): a run ─▶ done: it waits for the next
                                                      └▶ failed or killed: it is over, and the next cell gets a new one

To the comparison a served cell is like one with its own process: the same arguments, log, lock and reasons. A process
in which a run failed is not used again, so a failure cannot affect later cells.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rlpost.cluster.processes import kill_tree
from rlpost.compare import cells
from rlpost.compare.cells import CellFiles, Ended, Process, Run, beginning, ended_with, launch
from rlpost.config.schema import Config

SERVER = (sys.executable, "-m", "rlpost.compare.cell_server")
DONE = b"done"  # the answer to a cell whose run returned the exit code 0
MESSAGE_BYTES = 2**16  # more than the longest command line of a cell


@contextlib.contextmanager
def starter(cfg: Config, concurrency: int) -> Iterator[Callable[[CellFiles, Config], Run]]:
    """What starts the cells: a CellServer if they may share their engines, else a process for each."""
    if not cfg.compare.share_engines or cfg.ray.address is not None or concurrency > 1:
        yield Process
        return
    with contextlib.closing(CellServer()) as server:
        yield server.start


class CellServer:
    """A process for cells that run one after another. It starts with the first cell, and anew after a failed one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def start(self, files: CellFiles, cfg: Config) -> ServedCell:
        """Start a cell; the one before must have ended. Raises like `Process`."""
        began = time.monotonic()
        with beginning(files, cfg) as (words, log):
            process, channel = self._serving(log)
            # If the process has just been killed, `ended` reports that.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(channel, [json.dumps(words).encode()], [log.fileno()])
        return ServedCell(files, process, channel, began)

    def _serving(self, log: BinaryIO) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The process and the socket that leads to it, new if there is none any more."""
        if self._process is None or self._channel is None or self._process.poll() is not None:
            self.close()
            self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self._process = launch([*SERVER, str(its.fileno())], log, keep=[its.fileno()])
        return self._process, self._channel

    def close(self) -> None:
        """End the process, which closes its engines; it is killed if that takes longer than a stop may."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            try:
                self._process.wait(cells.STOP_S)
            except subprocess.TimeoutExpired:
                pass
            finally:  # also if Ctrl-C arrives meanwhile
                kill_tree(self._process)
        self._process = self._channel = None


class ServedCell(Process):
    """A cell in the process of a CellServer. To stop it stops that process."""

    def __init__(
        self, files: CellFiles, process: subprocess.Popen[bytes], channel: socket.socket, began: float
    ) -> None:
        self.files, self.began = files, began
        self._process, self._channel = process, channel

    def ended(self) -> Ended | None:
        """How the cell ended; None while it runs, and while a process in which it failed closes its engines."""
        if self._answer() == DONE:
            return ended_with(self.files, 0, self.seconds)
        return super().ended()

    def _answer(self) -> bytes:
        """What the process has answered; empty if nothing yet, or if it has closed its end."""
        try:
            return self._channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            return b""
