"""Reads tool calls as Qwen and Hermes models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

Text beside the calls is allowed, and so is an answer without calls. Every other deviation has a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rlpost.envs.parsing import MAX_ANSWER

BEGIN, END = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{BEGIN}(.*?)(?:{END}|\Z)", re.DOTALL)


class Malformed(Enum):
    """The kinds of malformed calls, for outcomes and for feedback to the model."""

    TOO_LONG = "The answer is too long to be read."
    UNCLOSED = f"A tool call has no {END}."
    NO_JSON = "A tool call is no JSON."
    NO_OBJECT = "A tool call is no JSON object."
    NO_NAME = "A tool call has no name."
    NO_ARGUMENTS = "The arguments of a tool call are no JSON object."
    UNKNOWN_TOOL = "There is no tool of that name."


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


def tool_calls(answer: str, tools: Collection[str]) -> list[ToolCall | Malformed]:
    """The calls of an answer in order, each parsed, or named as malformed; empty if there are none. Never raises.

    `tools` are the names of the available tools. Missing arguments count as empty. The environment checks whether the
    arguments fit the tool's schema.
    """
    if len(answer) > MAX_ANSWER:
        return [Malformed.TOO_LONG]
    return [_read(found[1], found[0].endswith(END), tools) for found in _CALL.finditer(answer)]


def _read(body: str, closed: bool, tools: Collection[str]) -> ToolCall | Malformed:
    if not closed:
        return Malformed.UNCLOSED
    try:
        call = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Malformed.NO_JSON
    if not isinstance(call, dict):
        return Malformed.NO_OBJECT
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not name:
        return Malformed.NO_NAME
    if name not in tools:
        return Malformed.UNKNOWN_TOOL
    return ToolCall(name, arguments) if isinstance(arguments, dict) else Malformed.NO_ARGUMENTS


def _refuse(constant: str) -> None:
    """Reject NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)
