"""The endpoint's responses, in OpenAI's shapes.

With `logprobs`, a choice also has `token_ids` and `prompt_token_ids`, exactly as the engine received and sampled them:
an extension, which OpenAI's client keeps as additional attributes.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from rlpost.envs.agent.requests import MODEL, Form
from rlpost.envs.asking import Answer, Refusal

END_OF_STREAM = b"data: [DONE]\n\n"


def completion(answer: Answer, form: Form) -> dict[str, Any]:
    """A whole chat completion."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer), **_exactly(answer, form)}
    return {**_head("chat.completion"), "choices": [choice], "usage": _usage(answer)}


def chunks(answer: Answer, form: Form) -> Iterator[bytes]:
    """The same as events of a stream, in one piece: an answer is complete before it is sent."""
    head = _head("chat.completion.chunk")
    delta = {"role": "assistant", "content": answer.text}
    yield _event({**head, "choices": [_piece(delta, None, _exactly(answer, form))]})
    yield _event({**head, "choices": [_piece({}, _finish(answer), {})]})
    if form.usage:
        yield _event({**head, "choices": [], "usage": _usage(answer)})
    yield END_OF_STREAM


def models() -> dict[str, Any]:
    """The list of models, which has one entry."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "rlpost"}]}


def error(refusal: Refusal) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {
        "error": {
            "message": refusal.message,
            "type": "invalid_request_error",
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": MODEL,
    }


def _piece(delta: dict[str, Any], finish: str | None, more: dict[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish, **more}


def _finish(answer: Answer) -> str:
    return "stop" if answer.stopped else "length"


def _exactly(answer: Answer, form: Form) -> dict[str, Any]:
    if not form.logprobs:
        return {"logprobs": None}
    content: list[dict[str, Any]] = [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in zip(answer.tokens, answer.logprobs, strict=True)
    ]
    return {
        "logprobs": {"content": content, "refusal": None},
        "token_ids": list(answer.token_ids),
        "prompt_token_ids": list(answer.prompt_ids),
    }


def _usage(answer: Answer) -> dict[str, int]:
    prompt, sampled = len(answer.prompt_ids), len(answer.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"
