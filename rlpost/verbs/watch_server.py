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
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rlpost.errors import OutputError
from rlpost.pages import render
from rlpost.verbs.watched import View, Watched

ADDRESS = "127.0.0.1"
REQUEST_S = 30.0  # that a client has to send its request
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


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
