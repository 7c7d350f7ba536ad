"""How an answer's text becomes an action of a server, and an observation text, by the server's schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message
from rlpost.envs.openenv.settings import Settings

LIST_TOOLS = {"type": "list_tools"}
_NOT_SAID = ("metadata", "done", "reward")
_CHOOSE = "choose one: env_args.{}=FIELD"


def calls_tools(schema: Mapping[str, Any]) -> bool:
    """Whether actions are calls of tools, as those of OpenEnv's MCP environments are."""
    properties = schema.get("properties")
    return isinstance(properties, Mapping) and {"tool_name", "arguments"} <= properties.keys()


def action_field(schema: Mapping[str, Any], settings: Settings) -> str:
    """The field that the answer's text becomes.

    Refused where the schema does not have the one that is set, and where none is set and not one only is needed.
    """
    properties = schema.get("properties")
    there = [name for name in properties if name not in _NOT_SAID] if isinstance(properties, Mapping) else []
    fixed = set(settings.action)
    if settings.action_field is not None:
        if settings.action_field not in there:
            raise Refused(
                f"an action has no field {settings.action_field!r}",
                f"there are: {', '.join(there) or 'none'}",
            )
        return settings.action_field
    needed = [name for name in schema.get("required", there) if name in there and name not in fixed]
    if len(needed) != 1:
        what = (
            f"an action needs the fields {', '.join(needed)}" if needed else "no field of an action is needed"
        )
        raise Refused(
            f"{what}, and there are {', '.join(there) or 'none'}",
            f"{_CHOOSE.format('action_field')}, the others by env_args.action",
        )
    return str(needed[0])


def said_fields(fields: Mapping[str, Any], settings: Settings) -> tuple[str, ...]:
    """Which fields of an observation the model reads, as its first one has them. Refused where that is not clear."""
    if settings.observation_field:
        unknown = [name for name in settings.observation_field if name not in fields]
        if unknown:
            raise Refused(f"an observation has no field {unknown[0]!r}", f"there are: {', '.join(fields)}")
        return settings.observation_field
    texts = [
        name for name, value in fields.items() if isinstance(value, str) and value and name not in _NOT_SAID
    ]
    if len(texts) != 1:
        what = f"the texts {', '.join(texts)}" if texts else "no text"
        raise Refused(
            f"the first observation has {what} among its fields {', '.join(fields)}",
            f"{_CHOOSE.format('observation_field')}, or several",
        )
    return (texts[0],)


def text_of(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The text of the named fields, each in a paragraph; empty ones say nothing."""
    return "\n\n".join(filter(None, (_text(fields.get(name)) for name in names)))


def _text(value: Any) -> str:
    """A text as it is, a list of messages by their contents, and anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(each, Mapping) and "content" in each for each in value):
        return "\n".join(str(each["content"]) for each in value)
    return json.dumps(value, ensure_ascii=False)


def tools_of(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that an observation lists, as chat templates take them. Refused where it lists none."""
    listed = fields.get("tools")
    found = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    if not found:
        raise Refused("the server lists no tools, and takes nothing else", "choose another environment")
    return [
        {
            "type": "function",
            "function": {
                "name": each.get("name"),
                "description": each.get("description") or "",
                "parameters": each.get("input_schema") or {"type": "object", "properties": {}},
            },
        }
        for each in found
    ]


def result_of(fields: Mapping[str, Any]) -> Message:
    """What a called tool answers, or its error."""
    match fields:
        case {"error": {"message": str() as told}}:
            return Message.of("tool", told)
        case {"result": {"data": data}} if data is not None:
            return Message.of("tool", _text(data))
        case {"result": {"content": list() as content}}:
            return Message.of(
                "tool", "\n".join(str(each.get("text", "")) for each in content if isinstance(each, dict))
            )
    return Message.of("tool", _text(fields.get("result")))
