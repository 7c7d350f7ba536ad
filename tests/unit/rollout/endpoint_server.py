"""A server that imitates POST /v1/chat/completions, with answers by a function of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]
Reply = tuple[int, bytes]  # HTTP status and body


def said(text: str | None, finish: str = "stop", tokens: int | None = 7, **more: Any) -> Reply:
    """A chat completion that answers `text`; `more` is added to the choice."""
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 3, "completion_tokens": tokens}}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        **more,
    }
    body = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], **usage}
    return 200, json.dumps(body).encode()


def refusal(status: int, message: str, code: str | None = None) -> Reply:
    return status, json.dumps({"error": {"message": message, "code": code, "type": "x"}}).encode()


@dataclass
class Served:
    url: str
    requests: list[Request] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # the Authorization of each request


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[Served]:
    """A server on the loopback that answers every request by `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(request)
            served.keys.append(str(self.headers["Authorization"]))
            status, body = answer(request) if self.path == "/v1/chat/completions" else (404, b"{}")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
