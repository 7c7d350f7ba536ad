"""The endpoint: one HTTP server per process, in its own thread. Only this file imports aiohttp.

Each episode has a secret token, which is its program's API key: a request belongs to the token's episode, and a request
without a valid token gets no answer. A token ends with its episode.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import lru_cache

from aiohttp import web

from rlpost.envs.agent import requests, responses
from rlpost.envs.agent.conversation import Conversation, Reward
from rlpost.envs.asking import CONTEXT_LENGTH_EXCEEDED, Answer, Refusal
from rlpost.envs.errors import Refused

MOST_BYTES = 32 * 2**20  # limit of a request's body
START_S = 30.0
ANSWER_S = 3600.0  # seconds after which a request is abandoned; rollout.timeout_s ends the worker long before
_LOOPBACK = "127.0.0.1"
# An address that no machine has (RFC 5737). Nothing is sent to it, but the route to it reveals our own address.
_ELSEWHERE = ("192.0.2.1", 9)
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients obey it: the same request would fail again

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Listens on a free port from its start to the end of the process."""

    def __init__(self, host: str) -> None:
        self._conversations: dict[str, Conversation] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="agent endpoint", daemon=True).start()
        port = asyncio.run_coroutine_threadsafe(self._listen(host), self._loop).result(START_S)
        self.base_url = f"http://{host}:{port}/v1"

    def open(self, conversation: Conversation) -> str:
        """Create a token for a conversation, which is answered from now on."""
        token = f"rlpost-{secrets.token_urlsafe(32)}"
        self._conversations[token] = conversation
        return token

    def close(self, token: str) -> None:
        """Invalidate a token."""
        self._conversations.pop(token, None)

    async def _listen(self, host: str) -> int:
        """Start to listen; return the port. The system chooses it, so it is always free."""
        app = web.Application(client_max_size=MOST_BYTES, middlewares=[_in_openais_shape])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/reward", self._reward)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        listening = socket.create_server((host, 0))
        await web.SockSite(runner, listening).start()
        port: int = listening.getsockname()[1]
        return port

    def _of(self, request: web.Request) -> Conversation:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        conversation = self._conversations.get(token) if scheme.lower() == "bearer" else None
        if conversation is None:
            raise requests.Refused("the api key is of no episode that is played now", None, "invalid_api_key")
        return conversation

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._of(request)
        return web.json_response(responses.models())

    async def _reward(self, request: web.Request) -> web.StreamResponse:
        conversation = self._of(request)
        reward, success = requests.reward_of(requests.parsed(await request.read()))
        if not conversation.post(Reward(reward, success)):
            raise requests.Refused("reward: this episode has been given one before", "reward")
        return web.json_response({"reward": reward})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        conversation = self._of(request)
        asked, form = requests.read(requests.parsed(await request.read()))
        answer = await _answer(conversation.ask(asked))
        if not form.stream:
            return web.json_response(responses.completion(answer, form))
        stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await stream.prepare(request)
        for chunk in responses.chunks(answer, form):
            await stream.write(chunk)
        return stream


async def _answer(reply: Future[Answer | Refusal]) -> Answer:
    """Wait for the answer. Raises Refused if the request is refused, or its episode ends before it is answered."""
    try:
        said = await asyncio.wait_for(asyncio.wrap_future(reply), ANSWER_S)
    except asyncio.CancelledError:
        if not reply.cancelled():
            raise  # the server itself ends
        raise requests.Refused("the episode is over", None, "episode_over") from None
    if isinstance(said, Refusal):
        raise requests.Refused(said.message, said.param, said.code)
    return said


_STATUS = {"invalid_api_key": 401, "episode_over": 401, "model_not_found": 404, CONTEXT_LENGTH_EXCEEDED: 400}


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the shape that OpenAI's clients read."""
    try:
        return await handler(request)
    except requests.Refused as refused:
        refusal, status = refused.refusal, _STATUS.get(refused.refusal.code or "", 400)
    except TimeoutError:
        refusal, status = Refusal(f"no answer within {ANSWER_S:g} s", None, "timeout"), 504
    except web.HTTPException as error:  # unknown path or method, or a body that is too large
        refusal, status = Refusal(f"{error.reason}: {request.method} {request.path}"), error.status
    return web.json_response(responses.error(refusal), status=status, headers=_NO_RETRY)


_STARTING = threading.Lock()


def server(network: bool) -> Server:
    """The server of this process: on the loopback, or on this machine's network address. The first call starts it.

    Raises Refused if the machine has no network address.
    """
    with _STARTING:
        return _started(network)


@lru_cache(maxsize=2)
def _started(network: bool) -> Server:
    return Server(_network_address() if network else _LOOPBACK)


def _network_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(_ELSEWHERE)
        except OSError as error:
            raise Refused(
                f"network=true: this machine has no network address: {error}", "leave it out"
            ) from error
        address: str = way.getsockname()[0]
        return address
