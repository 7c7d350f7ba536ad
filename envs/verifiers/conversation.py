"""Messages of verifiers as ours, and an answer's text as the message that verifiers expects of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlpost.envs.errors import Refused
from rlpost.envs.messages import ROLES, Message
from rlpost.envs.tool_calls import BEGIN, END, Malformed, ToolCall, tool_calls


@dataclass(frozen=True)
class Answer:
    """What an answer says before its calls, and the calls. `malformed` ones are left in the text, as a server does."""

    content: str
    calls: tuple[ToolCall, ...]
    malformed: Malformed | None


class _AnyName:
    """Every name is one of a tool: verifiers tells the model itself of a tool that is not there."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def answer_of(text: str, with_tools: bool) -> Answer:
    """An answer read. Without tools nothing in it is a call; one malformed call makes all of it plain text."""
    found = tool_calls(text, _AnyName()) if with_tools else []
    calls = tuple(each for each in found if isinstance(each, ToolCall))
    malformed = next((each for each in found if isinstance(each, Malformed)), None)
    if malformed is not None or not calls:
        return Answer(text, (), malformed)
    return Answer(text.partition(BEGIN)[0].strip(), calls, None)


def message_of(message: Any) -> Message:
    """A message of verifiers, a dict or one of its classes. Refused for what is no text, and for another role."""
    role = _field(message, "role")
    if role not in ROLES:
        raise Refused(
            f"verifiers says a message of the role {role!r}", "only " + ", ".join(ROLES) + " are carried"
        )
    calls = [_call(each) for each in _field(message, "tool_calls") or ()]
    return Message.of(role, "\n".join([*filter(None, [_text(_field(message, "content"))]), *calls]))


def tool_of(tool: Any) -> dict[str, Any]:
    """A tool's schema, as chat templates take it (envs/base.py: WithTools)."""
    return {
        "type": "function",
        "function": {
            "name": _field(tool, "name"),
            "description": _field(tool, "description") or "",
            "parameters": _field(tool, "parameters") or {"type": "object", "properties": {}},
        },
    }


def _field(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _text(content: Any) -> str:
    """The text of a message. Refused where a part of it is an image, or anything else that is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise Refused(
            f"verifiers says a message whose content is {type(content).__name__}", "only texts are carried"
        )
    kinds = {_field(part, "type") for part in content} - {"text"}
    if kinds:
        raise Refused(
            f"verifiers says a message with a part of the type {sorted(map(str, kinds))[0]!r}",
            "only texts are carried: choose an environment without images and sound",
        )
    return "".join(str(_field(part, "text")) for part in content)


def _call(call: Any) -> str:
    """A call that a message of an assistant holds, as models write it."""
    function = _field(call, "function")
    name, arguments = (_field(call if function is None else function, key) for key in ("name", "arguments"))
    if isinstance(arguments, str):
        with suppress(ValueError):  # else shown as it stands
            arguments = json.loads(arguments)
    return f"{BEGIN}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{END}"
