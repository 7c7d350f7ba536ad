"""Reads the body of a chat completion request strictly: what cannot be honoured is refused by name, never ignored.

The learner must know the distribution from which tokens were drawn, so everything that would change it (another
temperature, top-p, penalties, biases, constrained output) is refused. A shorter answer has the same distribution, cut.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlpost.envs.asking import Refusal, Request

MODEL = "policy"  # the only model
ROLES = ("system", "user", "assistant", "tool")
# Fields about the caller, without effect on the answer.
_NO_MEANING = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_MESSAGE_FIELDS = ("role", "content", "name", "tool_call_id")
_MOST_TOKENS = 2**31


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(message, param, code)


@dataclass(frozen=True)
class Form:
    """The requested form of the answer."""

    stream: bool = False
    usage: bool = False  # report usage at the end of a stream
    logprobs: bool = False


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refused if there is none."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}"[:300]) from error
    if not isinstance(found, dict):
        raise Refused("the body is no JSON object")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def read(body: Mapping[str, Any]) -> tuple[Request, Form]:
    """A request and the form of its answer. Raises Refused, naming the field. A null field counts as not given."""
    given = {key: value for key, value in body.items() if value is not None and key not in _NO_MEANING}
    if unknown := sorted(given.keys() - _FIELDS):
        raise Refused(f"{unknown[0]}: this endpoint does not know it", unknown[0], "unsupported_parameter")
    _known_model(given.get("model"))
    for key, (honoured, why) in _ONLY.items():
        if key in given and not honoured(given[key]):
            raise Refused(f"{key}: {why}", key, "unsupported_value")
    request = Request(
        messages=_messages(given.get("messages")),
        tools=_tools(given.get("tools", [])),
        max_tokens=_max_tokens(given),
        temperature=_temperature(given.get("temperature")),
        stop=_stop(given.get("stop")),
    )
    return request, _form(given)


def reward_of(body: Mapping[str, Any]) -> tuple[float, bool | None]:
    """The reward posted for an episode. Raises Refused for anything but {"reward": number, "success": bool}."""
    if unknown := sorted(body.keys() - {"reward", "success"}):
        raise Refused(f"{unknown[0]}: a reward has only reward and success", unknown[0])
    reward, success = body.get("reward"), body.get("success")
    if isinstance(reward, bool):
        reward = float(reward)
    if not _is_number(reward) or reward is None:
        raise Refused("reward: must be a finite number", "reward")
    if success is not None and not isinstance(success, bool):
        raise Refused("success: must be true or false", "success")
    return float(reward), success


def _known_model(model: object) -> None:
    if model != MODEL:
        raise Refused(f"model: there is only {MODEL!r}", "model", "model_not_found")


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is(*values: object) -> Callable[[object], bool]:
    return lambda value: any(value == each and type(value) is type(each) for each in values)


_NEVER = "the tokens would not come from the distribution that is learnt; leave it out"
_ONLY: dict[str, tuple[Callable[[object], bool], str]] = {
    "n": (_is(1), "one answer a call; make several calls"),
    "top_p": (_is(1, 1.0), _NEVER),
    "presence_penalty": (_is(0, 0.0), _NEVER),
    "frequency_penalty": (_is(0, 0.0), _NEVER),
    "logit_bias": (_is({}), _NEVER),
    "response_format": (_is({"type": "text"}), "output is not constrained: " + _NEVER),
    "seed": (lambda value: False, "each call's dice come from its episode's own seed; leave it out"),
    "top_logprobs": (_is(0), "only the log-probs of sampled tokens are kept"),
    "tool_choice": (_is("auto", "none"), "no call is forced: " + _NEVER),
    "parallel_tool_calls": (_is(True), "output is not constrained: " + _NEVER),
    "store": (_is(False), "nothing is stored here"),
    "modalities": (_is(["text"]), "only text"),
}
_FIELDS = {
    *("model", "messages", "tools", "max_tokens", "max_completion_tokens", "temperature"),
    *("stop", "stream", "stream_options", "logprobs"),
    *_ONLY,
}


def _messages(given: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(given, list) or not given:
        raise Refused("messages: must be a list of at least one message", "messages")
    messages = tuple(_message(f"messages[{i}]", each) for i, each in enumerate(given))
    if messages[-1]["role"] == "assistant":
        raise Refused("messages: the last one is the assistant's, and is not continued", "messages")
    return messages


def _message(where: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise Refused(f"{where}: must be an object", "messages")
    said = {key: value for key, value in given.items() if value not in (None, [])}
    if said.get("role") not in ROLES:
        raise Refused(f"{where}.role: must be one of {', '.join(ROLES)}", "messages")
    if unknown := sorted(said.keys() - set(_MESSAGE_FIELDS)):
        raise Refused(f"{where}.{unknown[0]}: cannot be shown to the model; write it as text", "messages")
    message = {"role": said["role"], "content": _content(f"{where}.content", said.get("content", ""))}
    for key in ("name", "tool_call_id"):
        if key in said:
            message[key] = _text(f"{where}.{key}", said[key])
    return message


def _content(where: str, given: object) -> str:
    """The text of a message's content: a text, or a list of parts that are text."""
    if not isinstance(given, list):
        return _text(where, given)
    parts = []
    for i, part in enumerate(given):
        if not isinstance(part, dict) or part.get("type") != "text" or part.keys() - {"type", "text"}:
            raise Refused(f'{where}[{i}]: must be {{"type": "text", "text": ...}}', "messages")
        parts.append(_text(f"{where}[{i}].text", part.get("text")))
    return "".join(parts)


def _text(where: str, given: object) -> str:
    if not isinstance(given, str):
        raise Refused(f"{where}: must be a text", "messages")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"{where}: holds half a surrogate pair, which no tokenizer takes", "messages"
        ) from error
    return given


def _tools(given: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(given, list):
        raise Refused("tools: must be a list", "tools")
    for i, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(f'tools[{i}]: must be {{"type": "function", "function": {{"name": ...}}}}', "tools")
    return tuple(given)


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    values = {key: given[key] for key in ("max_tokens", "max_completion_tokens") if key in given}
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MOST_TOKENS:
            raise Refused(f"{key}: must be a whole number of at least 1", key)
    return min(values.values(), default=None)


def _temperature(given: object) -> float | None:
    if given is not None and not _is_number(given):
        raise Refused("temperature: must be a finite number", "temperature")
    return None if given is None else float(given)  # type: ignore[arg-type]


def _stop(given: object) -> tuple[str, ...] | None:
    texts = [given] if isinstance(given, str) else given
    if texts is None or (isinstance(texts, list) and all(isinstance(each, str) for each in texts)):
        return None if texts is None else tuple(texts)
    raise Refused("stop: must be a text or a list of texts", "stop")


def _form(given: Mapping[str, Any]) -> Form:
    for key in ("stream", "logprobs"):
        if not isinstance(given.get(key, False), bool):
            raise Refused(f"{key}: must be true or false", key)
    options = given.get("stream_options", {})
    usage = options.get("include_usage") if isinstance(options, dict) else None
    if (
        not isinstance(options, dict)
        or options.keys() - {"include_usage"}
        or not isinstance(usage, bool | None)
    ):
        raise Refused("stream_options: only include_usage, true or false", "stream_options")
    return Form(given.get("stream", False), bool(usage), given.get("logprobs", False))
