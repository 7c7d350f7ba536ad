"""OpenEnv's protocol: JSON over a WebSocket, one session each; schemas over HTTP.

    -> {"type": "reset", "data": {"seed": 3}}      <- {"type": "observation", "data": {"observation", "reward", "done"}}
    -> {"type": "step", "data": {"message": ..}}   <- the same, or {"type": "error", "data": {"message", "code"}}

OpenEnv's own client is not imported: it comes with the server's packages, which do not install beside vLLM (fastmcp
needs mcp below 2, vLLM from 2 on).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rlpost.envs.errors import UnknownEnvironment

_FORM = "write openenv:http://HOST:PORT, the address of a server of OpenEnv"
_START = "start the server, or mend the address"
_INSTALL = "pip install 'rlpost[openenv]'"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MOST_BYTES = 16 * 2**20  # of one answer
_INVALID = "VALIDATION_ERROR"  # an action that is not of the server's schema


class ServerFailed(RuntimeError):
    """The server gave no answer, an error, or something else than its protocol says. The episode is broken."""


class InvalidAction(ValueError):
    """The server does not take the action: it is not of its schema."""


@dataclass(frozen=True)
class Address:
    """Where a server is. `host` is for the eye and for choosing a proxy."""

    url: str  # http or https, without a slash at its end
    host: str

    @property
    def websocket(self) -> str:
        return f"ws{self.url.removeprefix('http')}/ws"

    @property
    def local(self) -> bool:
        return self.host in _LOOPBACK


@dataclass(frozen=True)
class Observation:
    fields: Mapping[str, Any]
    reward: float
    done: bool


def address(url: str) -> Address:
    """UnknownEnvironment for what is no address of a server."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnknownEnvironment(f"openenv:{url}: {error}", _FORM) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UnknownEnvironment(f"openenv:{url}: is no address of a server", _FORM)
    if parts.username or parts.query or parts.fragment:
        raise UnknownEnvironment(f"openenv:{url}: has more than scheme, host, port and path", _FORM)
    return Address(url.rstrip("/"), parts.hostname)


def schemas(server: Address, timeout_s: float) -> Mapping[str, Any]:
    """The server's JSON schemas: `action`, `observation` and others.

    UnknownEnvironment where it is away, or is no server of OpenEnv.
    """
    proxies = urllib.request.ProxyHandler({}) if server.local else urllib.request.ProxyHandler()
    opener = urllib.request.build_opener(proxies)
    try:
        with opener.open(f"{server.url}/schema", timeout=timeout_s) as answer:
            found = json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        raise UnknownEnvironment(
            f"openenv:{server.url}: answers {error.code} to /schema", "is it a server of OpenEnv?"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnknownEnvironment(f"openenv:{server.url}: there is no answer ({error})", _START) from error
    except (ValueError, RecursionError) as error:
        raise UnknownEnvironment(
            f"openenv:{server.url}: its /schema is no JSON ({error})", "is it a server of OpenEnv?"
        ) from error
    if not (isinstance(found, dict) and isinstance(found.get("action"), dict)):
        raise UnknownEnvironment(
            f"openenv:{server.url}: its /schema has no schema of an action", "is it a server of OpenEnv?"
        )
    return found


def _library() -> tuple[Any, Any]:
    """The client of websockets, and what it raises of a closed connection."""
    try:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync import client
    except ImportError as error:
        raise UnknownEnvironment(f"the package websockets cannot be imported ({error})", _INSTALL) from error
    return client, ConnectionClosed


class Session:
    """A session of a server, opened when it is first asked and again after it was lost."""

    def __init__(self, server: Address, timeout_s: float) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._client, self._closed = _library()
        self._socket: Any = None
        self._open = ExitStack()  # what ends the socket

    def reset(self, data: Mapping[str, Any]) -> Observation:
        """A new episode, in a new session where the last is lost. Raises ServerFailed."""
        lost = self._socket is not None
        try:
            return self._observation("reset", data)
        except ServerAway:
            if not lost:
                raise
            return self._observation("reset", data)

    def step(self, data: Mapping[str, Any]) -> Observation:
        """Raises InvalidAction for what the server's schema refuses, and ServerFailed."""
        if self._socket is None:
            raise ServerFailed(f"the session with {self._server.url} is lost")
        return self._observation("step", data)

    def close(self) -> None:
        """End the session; a server that is away is none to tell."""
        if self._socket is not None:
            with suppress(Exception):
                self._socket.send(json.dumps({"type": "close"}))
        self._drop()

    def _observation(self, kind: str, data: Mapping[str, Any]) -> Observation:
        answer = self._asked(kind, data)
        match answer:
            case {"type": "observation", "data": {"observation": dict() as fields, **rest}}:
                return Observation(fields, self._reward(rest.get("reward")), rest.get("done") is True)
            case {"type": "error", "data": {"code": code, **rest}}:
                told = f"{rest.get('message')} {_places(rest.get('errors'))}".strip()
                if kind == "step" and code == _INVALID:
                    raise InvalidAction(told)
                raise ServerFailed(f"{self._server.url} answers {kind} with an error, {code}: {told}")
        raise ServerFailed(
            f"{self._server.url} answers {kind} with {str(answer)[:200]}, which is no observation"
        )

    def _reward(self, reward: Any) -> float:
        if reward is None:
            return 0.0
        if not isinstance(reward, (bool, int, float)):
            raise ServerFailed(f"{self._server.url} gives the reward {reward!r}")
        return float(reward)

    def _asked(self, kind: str, data: Mapping[str, Any]) -> Any:
        """One message and its answer. Raises ServerAway where there is none, after which the session is a new one."""
        try:
            if self._socket is None:
                opening = self._client.connect(
                    self._server.websocket,
                    open_timeout=self._timeout_s,
                    close_timeout=1,
                    max_size=_MOST_BYTES,
                    proxy=None if self._server.local else True,
                )
                self._socket = self._open.enter_context(opening)
            with suppress(
                self._closed
            ):  # a server without a place says so, and closes: what it said is read below
                self._socket.send(json.dumps({"type": kind, "data": dict(data)}))
            answer = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self._drop()
            raise ServerFailed(
                f"{self._server.url} gave no answer to {kind} within env_args.timeout_s={self._timeout_s:g}"
            ) from error
        except Exception as error:  # of the socket, of its protocol, of a proxy
            self._drop()
            raise ServerAway(
                f"{self._server.url} is away at {kind}: {type(error).__name__}: {error}"
            ) from error
        try:
            return json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise ServerFailed(f"{self._server.url} answers {kind} with no JSON: {error}") from error

    def _drop(self) -> None:
        self._socket = None
        with suppress(Exception):
            self._open.close()


class ServerAway(ServerFailed):
    """The connection is gone, or cannot be had."""


def _places(errors: Any) -> str:
    """Where an action does not fit, as the server tells it."""
    told = []
    for each in errors if isinstance(errors, list) else ():
        match each:
            case {"loc": list() as where, "msg": str() as what}:
                told.append(f"{'.'.join(map(str, where))}: {what}")
    return f"({'; '.join(told)})" if told else ""
