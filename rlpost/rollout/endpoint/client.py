"""Asks a model behind an OpenAI-compatible server: POST ENDPOINT/chat/completions, by the official `openai` client.

    ask(messages) ─▶ a future ─▶ Answer: text, why it ended, how many tokens the server counted
                              ─▶ ContextFull: the conversation does not fit the model
                              ─▶ RolloutError: anything else that the server refuses, in its own words

Requests run in one thread with its own event loop, where each has a deadline that covers all its retries.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import openai

from rlpost.errors import RolloutError
from rlpost.rollout.engine.protocol import Sampling
from rlpost.types import Finish

KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # the client insists on a key, and a server of one's own often has none
RETRIES = 4  # of a connection that fails and of HTTP 408, 409, 429 and 5xx, with growing waits
_CLOSING_S = 5.0
_MOST = 300  # characters shown of what a server says
_MARK = "maximum context length"  # what vLLM says, which gives no code

ChatMessage = Mapping[str, str]  # role and content


class ContextFull(Exception):
    """The server refused one request because the conversation, or its answer, does not fit the model's context."""


@dataclass(frozen=True)
class Answer:
    text: str
    finish: Finish
    tokens: int | None  # completion_tokens of the server's usage; None if it reports none


class EndpointClient:
    """The model `model` of the server at `url`, such as http://localhost:8000/v1. The key is OPENAI_API_KEY's."""

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        """`timeout_s`: the deadline of one answer, retries included."""
        self._url, self._model, self._timeout_s = url, model, timeout_s
        self._key = os.environ.get(KEY) or NO_KEY
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=self._key, max_retries=RETRIES, timeout=timeout_s
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def ask(self, messages: Sequence[ChatMessage], sampling: Sampling, seed: int) -> Future[Answer]:
        """Request one answer. The future raises ContextFull or RolloutError."""
        return asyncio.run_coroutine_threadsafe(self._asked(list(messages), sampling, seed), self._loop)

    def close(self) -> None:
        """Cancel what is still asked, and end the thread."""
        with suppress(Exception):  # a connection that does not close ends with the process
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    async def _asked(self, messages: list[ChatMessage], sampling: Sampling, seed: int) -> Answer:
        request: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed,
        }
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(**request)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise self._error(
                f"no answer within rollout.timeout_s={self._timeout_s:g}, retries included",
                "raise it, or ask for fewer answers at once by rollout.max_num_seqs",
            ) from error
        except openai.BadRequestError as error:
            if _is_context_full(error):
                raise ContextFull from error
            raise self._refused(error) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._error(
                f"no connection in {RETRIES + 1} attempts ({type(cause).__name__}: {self._told(str(cause))})",
                "start the server, or mend eval.endpoint",
            ) from error
        try:
            return read_answer(raw.content)
        except ValueError as error:
            told = f"{self._told(str(error))}: {self._told(raw.content[:_MOST].decode(errors='replace'))}"
            remedy = "name the base address of an OpenAI-compatible server, which often ends with /v1"
            raise self._error(f"its reply is no chat completion ({told})", remedy) from error

    def _refused(self, error: openai.APIStatusError) -> RolloutError:
        match error.status_code:
            case 401 | 403:
                had = "was sent" if self._key != NO_KEY else "is not set"
                remedy = f"export {KEY}=... with a key of this server ({KEY} {had})"
            case 404:
                remedy = "mend eval.endpoint_model, or eval.endpoint, which often ends with /v1"
            case 429:
                remedy = (
                    "ask for fewer answers at once by rollout.max_num_seqs, or raise the account's limits"
                )
            case _:
                remedy = "see the server's log, or its documentation"
        return self._error(f"HTTP {error.status_code}: {self._told(error.message)}", remedy)

    def _error(self, reason: str, remedy: str) -> RolloutError:
        return RolloutError(
            f"eval.endpoint={self._url}, model {self._model}\n  reason: {reason}\n  remedy: {remedy}"
        )

    def _told(self, text: str) -> str:
        """What a server said in one printable line, without the key, which some servers repeat."""
        line = " ".join(text.replace(self._key, "(hidden)").split() if self._key != NO_KEY else text.split())
        shown = "".join(letter if letter.isprintable() else "?" for letter in line)
        return shown if len(shown) <= _MOST else shown[:_MOST] + "..."


def read_answer(body: bytes) -> Answer:
    """The answer in the body of a chat completion. Raises ValueError for anything else.

    An answer without text (the server withheld it, or the model called a tool) is the empty text. If the server says
    which stop string ended the answer (vLLM's `stop_reason`), the text has it at its end, as a rollout's has.
    """
    reply = json.loads(body)
    match reply:
        case {"choices": [{"message": {**message}, **choice}, *_]}:
            text = message.get("content")
        case _:
            raise ValueError("it has no choice with a message")
    text = "" if text is None else text
    if not isinstance(text, str):
        raise ValueError("its content is no text")
    stop, finish = choice.get("stop_reason"), Finish.STOP
    if choice.get("finish_reason") == "length":
        finish = Finish.LENGTH
    elif isinstance(stop, str):
        text, finish = text if text.endswith(stop) else text + stop, Finish.STOP_STRING
    return Answer(_whole_letters(text), finish, _completion_tokens(reply))


def _completion_tokens(reply: Mapping[str, Any]) -> int | None:
    match reply.get("usage"):
        case {"completion_tokens": int(tokens)} if tokens >= 0 and not isinstance(tokens, bool):
            return tokens
    return None


def _whole_letters(text: str) -> str:
    """`text` with U+FFFD for half a surrogate pair, which JSON can spell; a tokenizer decodes half a letter so too."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_context_full(error: openai.BadRequestError) -> bool:
    return error.code == "context_length_exceeded" or _MARK in error.message.lower()
