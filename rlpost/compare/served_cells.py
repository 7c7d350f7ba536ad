"""Cells that share a process, and in it Ray, the engines and what was imported.

    CellServer.start ─▶ arguments, the cell's log ─▶ the process (cell_server.py): a run ─▶ done: it waits for the next
                                                      └▶ failed or killed: it is over, and the next cell gets a new one

To the comparison a served cell is like one with its own process: the same arguments, log, lock and reasons. A process
in which a run failed is not used again, so a failure cannot affect later cells. Cells that run at the same time are in
different processes, each with its own engines: while one cell learns, another plays.
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
    """What starts the cells: one of as many servers as cells run at once if they may share engines, else a process."""
    if not cfg.compare.share_engines or cfg.ray.address is not None:
        yield Process
        return
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contextlib.closing(CellServer())) for _ in range(concurrency)]

        def start(files: CellFiles, cfg: Config) -> Run:
            return next(server for server in servers if server.idle).start(files, cfg)

        yield start


class CellServer:
    """A process for cells that run one after another. It starts with the first cell, and anew after a failed one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._cell: ServedCell | None = None  # the last one

    @property
    def idle(self) -> bool:
        """Whether no cell runs in it."""
        return self._cell is None or self._cell.ended() is not None

    def start(self, files: CellFiles, cfg: Config) -> ServedCell:
        """Start a cell; the one before must have ended. Raises like `Process`."""
        began = time.monotonic()
        with beginning(files, cfg) as (words, log):
            process, channel = self._serving(log)
            # If the process has just been killed, `ended` reports that.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(channel, [json.dumps(words).encode()], [log.fileno()])
        self._cell = ServedCell(files, process, channel, began)
        return self._cell

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
        self._ended: Ended | None = None

    def ended(self) -> Ended | None:
        """How the cell ended; None while it runs, and while a process in which it failed closes its engines."""
        if self._ended is None:
            done = self._answer() == DONE
            self._ended = ended_with(self.files, 0, self.seconds) if done else super().ended()
        return self._ended

    def _answer(self) -> bytes:
        """What the process has answered; empty if nothing yet, or if it has closed its end."""
        try:
            return self._channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            return b""
