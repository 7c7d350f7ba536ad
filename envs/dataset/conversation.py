"""Converts the possible shapes of a row to one: the question, and the conversation to learn from.

    {"prompt": "2 + 2 =", "answer": "4"}                                       a question; the scorer reads the rest
    {"prompt": "2 + 2 =", "completion": "4"}                                   with a right answer
    {"messages": [{"role": "system", "content": "..."}, {"role": "user", ...}, {"role": "assistant", ...}]}
    {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}

An episode's prompt is everything before the assistant's last answer. Supervised fine-tuning learns every message of the
assistant in `messages`, or only the completion if there is one; all else is context and is never learned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from rlpost.envs.base import ExpertTurn
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.messages import ROLES, Message, Role, Said, Text
from rlpost.envs.one_turn import Question, instance_of

Row = dict[str, Any]
COMPLETION = "completion"
_SURROGATE = re.compile("[\ud800-\udfff]")
# Fields of a message, in other data sets, that say more than its content or whether it is learnt.
_UNREAD = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "weight",
    "train",
    "refusal",
)


class BadRow(ValueError):
    """The reason why a row cannot be used, worded to follow the row's place."""


@dataclass(frozen=True)
class Asked(Question):
    """A row's question. `data` is the row; `lesson` is empty if the row has no answer to learn from."""

    lesson: tuple[ExpertTurn, ...] = ()


def asked(row: Row, settings: Settings) -> Asked:
    """The question of a row. Raises BadRow, with a description, for a row of unknown shape."""
    said, learnt_from = _conversation(row, settings)
    prompt = said[: _last_answer(said)]
    if not any(each.role == "user" for each in prompt):
        raise BadRow("no message of the user comes before the answer")
    told = _instructed(prompt, settings.instruction)
    lesson = _lesson((*told, *said[len(prompt) :]), learnt_from) if len(prompt) < len(said) else ()
    return Asked(_plain(told), instance_of(_plain(prompt)), row, lesson)


def _conversation(row: Row, settings: Settings) -> tuple[tuple[Message, ...], int]:
    """All messages, with an answer at the end if there is one, and the index from which answers are learned."""
    field = _question_field(row, settings)
    said = _messages(row[field], field)
    answer = settings.expert or (COMPLETION if row.get(COMPLETION) is not None else None)
    if answer is None:
        if field == settings.prompt and said[-1].role == "assistant":
            raise BadRow(
                f"its field {field!r} ends with a message of the assistant, and has no {COMPLETION!r}"
            )
        return said, 0
    completion = (
        _messages(row.get(answer), answer, role="assistant") if answer in row else _missing(row, answer)
    )
    if completion[0].role == "user" or completion[-1].role != "assistant":
        raise BadRow(f"its field {answer!r} is no answer: its messages are {_roles(completion)}")
    if said[-1].role == "assistant":
        raise BadRow(
            f"its field {field!r} ends with a message of the assistant, and {answer!r} is another answer"
        )
    return (*said, *completion), 0 if field == settings.messages else len(said)


def _question_field(row: Row, settings: Settings) -> str:
    there = [name for name in (settings.prompt, settings.messages) if name and row.get(name) is not None]
    if len(there) > 1:
        raise BadRow(
            f"has both {there[0]!r} and {there[1]!r}: name the one to ask, with env_args.prompt=null or"
            " env_args.messages=null"
        )
    wanted = settings.prompt or settings.messages
    return there[0] if there else _missing(row, str(wanted))


def _missing(row: Row, field: str) -> Any:
    """Raise BadRow for a missing field."""
    seen = f"is {row[field]!r}" if field in row else f"is missing (there are {', '.join(row)})"
    raise BadRow(f"its field {field!r} {seen}, but must be a text or messages")


def _messages(value: object, field: str, role: Role = "user") -> tuple[Message, ...]:
    """The messages in a field: a text, which is one message of `role`, or a list of messages."""
    if isinstance(value, str):
        return (Message.of(role, _text(value, f"its field {field!r}")),)
    if not isinstance(value, Sequence) or not value:
        raise BadRow(f"its field {field!r} is {repr(value)[:40]}, but must be a text or messages")
    said = tuple(_message(each, f"message {n} of {field!r}") for n, each in enumerate(value))
    roles = [each.role for each in said]
    if roles[0] == "assistant" and role != "assistant":
        raise BadRow(f"{field!r} begins with a message of the assistant")
    if ("assistant", "assistant") in pairwise(roles):
        raise BadRow(f"{field!r} has two messages of the assistant, one right after the other")
    return said


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise BadRow(f"{where} is {repr(value)[:40]}, but must have role and content")
    if value["role"] not in ROLES:
        raise BadRow(f"{where} has the role {value['role']!r}: there are {', '.join(ROLES)}")
    if unread := [name for name in _UNREAD if value.get(name) not in (None, "", [], {})]:
        raise BadRow(
            f"{where} has {unread[0]!r}, which is not read: only content is. Write it into the content, in the form"
            " that the model is to say it, or remove it"
        )
    content = value["content"]
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not parts:
        raise BadRow(f"{where} has the content {repr(content)[:40]}, but must have a text or parts of text")
    texts = tuple(Text(_text(_part(part, where), where)) for part in parts)
    return Message(cast(Role, value["role"]), texts)


def _part(part: object, where: str) -> object:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRow(f"{where} has a part of type {kind!r}: only text can be read")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{where} is {repr(value)[:40]}, but must be a text")
    if _SURROGATE.search(value):
        raise BadRow(f"{where} holds half a surrogate pair, which no tokenizer takes")
    return value


def _last_answer(said: Sequence[Message]) -> int:
    """The index of the last answer, if it ends the conversation; else the number of messages."""
    return len(said) - 1 if said[-1].role == "assistant" else len(said)


def _instructed(prompt: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """The prompt with the instruction after the user's last message."""
    if not instruction:
        return prompt
    last = max(i for i, each in enumerate(prompt) if each.role == "user")
    parts = (*prompt[last].parts, Text(f"\n{instruction}"))
    return (*prompt[:last], Message("user", parts), *prompt[last + 1 :])


def _lesson(said: Sequence[Message], learnt_from: int) -> tuple[ExpertTurn, ...]:
    """One turn per message of the assistant: what was said since the last one, its text, whether to learn it."""
    turns, context = list[ExpertTurn](), list[Message]()
    for number, each in enumerate(said):
        if each.role == "assistant":
            turns.append((_plain(tuple(context)), each.text, number >= learnt_from))
            context = []
        else:
            context.append(each)
    return tuple(turns)


def _plain(said: tuple[Message, ...]) -> Said:
    """A single message of the user becomes plain text."""
    return said[0].text if len(said) == 1 and said[0].role == "user" else said


def _roles(said: Sequence[Message]) -> str:
    return ", ".join(each.role for each in said)
