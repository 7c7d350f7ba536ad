"""The server of `watch`: GET on the loopback, below a secret path.

    /TOKEN/                  the page                /TOKEN/fragments?seen=...             what of it has changed
    /TOKEN/cells/NAME/       a cell's page           /TOKEN/cells/NAME/fragments?seen=...

The token keeps out other users of the machine, who can reach its loopback too. The Host header is checked, so that a
page of another site, whose name was made to mean 127.0.0.1, is refused. No path of a request ever becomes a path of a
file: a cell is looked up among the names that are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from omegaconf import OmegaConf

from rlpost.compare.cells import CellFiles
from rlpost.errors import OutputError, RlpostError
from rlpost.pages import render
from rlpost.pages.live_page import LiveRun
from rlpost.record.run_dir import RunDir

ADDRESS = "127.0.0.1"
REQUEST_S = 30.0  # that a client has to send its request, and a request to wait for another one's page
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


@dataclass(frozen=True)
class View:
    """What one page shows."""

    title: str
    fragments: Mapping[str, bytes]
    up: str | None = None  # the address of the page above it


class Watched:
    """The views of a folder, by the parts of a path: () is the folder's own, ("cells", NAME) a cell's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = LiveRun(folder)
        self._cells: dict[str, LiveRun] = {}
        self._lock = threading.Lock()

    def view(self, parts: tuple[str, ...]) -> View | None:
        """None where there is no such page. Raises TimeoutError where other requests take too long."""
        if not self._lock.acquire(timeout=REQUEST_S):
            raise TimeoutError
        try:
            return self._view(parts)
        finally:
            self._lock.release()

    def _view(self, parts: tuple[str, ...]) -> View | None:
        if not self._is_comparison():
            return View(self._run.title, self._run.fragments()) if parts == () else None
        names = self._names()
        if parts == ():
            cells = [self._row(name) for name in names]
            return View(self._run.title, {"cells": render.render("live_cells.html.jinja", cells=cells)})
        if len(parts) == 2 and parts[0] == "cells" and parts[1] in names and self._begun(parts[1]):
            cell = self._cell(parts[1])
            return View(cell.title, cell.fragments(), up="../../")
        return None

    def _is_comparison(self) -> bool:
        if (self._folder / "cells").is_dir():
            return True
        try:
            return str(OmegaConf.select(RunDir(self._folder).read_config(), "task")) == "compare"
        except (RlpostError, OSError):
            return False

    def _names(self) -> list[str]:
        """Every cell that was planned."""
        return sorted(path.stem for path in (self._folder / "cells").glob("*.yaml"))

    def _begun(self, name: str) -> bool:
        return CellFiles(self._folder, name).run_dir.config.is_file()

    def _cell(self, name: str) -> LiveRun:
        if name not in self._cells:
            self._cells[name] = LiveRun(CellFiles(self._folder, name).run_dir.path)
        return self._cells[name]

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "error": None, "address": None}
        if not self._begun(name):
            row |= {"state": "waiting", "progress": "-", "success": "-", "age": ""}
        else:
            row |= {**self._cell(name).progress(), "address": f"cells/{quote(name, safe='')}/"}
        try:
            ended = CellFiles(self._folder, name).read_ended()
        except RlpostError as error:
            return row | {"error": str(error)}
        return row if ended is None else row | {"state": ended.status.value, "error": ended.error}


class Server(ThreadingHTTPServer):
    """`url` is the address of the page, with its token."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, every: int) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.watched, self.every, self.token = Watched(folder), every, secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def is_own(self, host: str | None) -> bool:
        """Whether a Host header names this server as a browser on this machine does."""
        return host in (f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}")


@contextlib.contextmanager
def serving(folder: Path, port: int, every: int) -> Iterator[Server]:
    """A server that is bound and not yet at work. Raises OutputError where the port cannot be had."""
    try:
        server = Server(folder, port, every)
    except OSError as error:
        raise OutputError(
            f"--port {port}\n  reason: it cannot be had ({error.strerror or error})\n"
            "  remedy: leave --port out for a free one"
        ) from error
    with server:
        yield server


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = REQUEST_S
    server_version = "rlpost"
    sys_version = ""

    def do_GET(self) -> None:
        if not self.server.is_own(self.headers.get("Host")):
            return self._refuse(HTTPStatus.FORBIDDEN)
        address = urlsplit(self.path)
        token, *parts = address.path.removeprefix("/").split("/")
        if not secrets.compare_digest(token.encode(errors="replace"), self.server.token.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND)
        *folder, last = map(unquote, parts) if parts else ("",)
        if last not in ("", "fragments") or not parts:
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            view = self.server.watched.view(tuple(folder))
        except TimeoutError:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        if view is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        fragments = {name: _fragment(html) for name, html in view.fragments.items()}
        if last == "fragments":
            seen = parse_qs(address.query).get("seen", [""])[0].split(",")
            return self._send("application/json", json.dumps(_changed(fragments, seen)).encode())
        return self._send("text/html; charset=utf-8", self._page(view, fragments))

    def _page(self, view: View, fragments: Mapping[str, Mapping[str, str]]) -> bytes:
        return render.render(
            "live.html.jinja",
            title=view.title,
            up=view.up,
            every=self.server.every,
            nonce=secrets.token_urlsafe(12),
            fragments=fragments,
        )

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self._headers(kind, body)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self._headers("text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode())

    def _headers(self, kind: str, body: bytes) -> None:
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a tab that was closed
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a line would hold the token."""


def _fragment(html: bytes) -> dict[str, str]:
    return {"version": hashlib.sha256(html).hexdigest()[:16], "html": html.decode()}


def _changed(fragments: Mapping[str, Mapping[str, str]], seen: list[str]) -> dict[str, Mapping[str, str]]:
    """Those that `seen` (NAME:VERSION each) does not have."""
    return {name: each for name, each in fragments.items() if f"{name}:{each['version']}" not in seen}
