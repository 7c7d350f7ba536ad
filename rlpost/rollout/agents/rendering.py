"""Encodes whole conversations of programs that ask with the model's chat template.

As in rlpost/rollout/chat.py: control tokens come from the template alone, whoever wrote a message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlpost.envs import messages as said
from rlpost.rollout.chat import Chat, changed_json

Message = Mapping[str, Any]
Change = Callable[[str], str]

_WITH_ROLE: Mapping[str, tuple[said.Role, ...]] = {
    "system": ("system", "user"),
    "assistant": ("user", "assistant", "user"),
    "tool": ("user", "assistant", "tool"),
}


class Renderer:
    """Renders conversations for a `chat`."""

    def __init__(self, chat: Chat) -> None:
        self._chat, self._template = chat, chat.template

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation up to the point where the model's answer begins.

        Raises ModelError if the chat template refuses it, confuses one role with another, or omits the tools.
        """
        self._check(messages, tools)

        def layout(change: Change) -> str:
            return self._template.render(changed_json(messages, change), changed_json(tools, change))

        return self._chat.encoded(layout, _spelt(messages, tools))

    def tail(
        self, messages: Sequence[Message], answer: int, tools: Sequence[Message]
    ) -> tuple[int, ...] | None:
        """The tokens after message number `answer`, an assistant's, up to the point where the next answer begins.

        None if the template changes that answer (drops its thinking), or writes the messages before it differently than
        it did without the rest: the conversation is then no continuation of an older one. White space around an answer
        does not count. Raises like `prompt_ids`.
        """
        self._check(messages, tools)
        spelt = _spelt(messages, tools)
        mark = next(mark for mark in map(chr, range(0xF800, 0xF900)) if mark not in spelt)

        def parts(change: Change) -> tuple[str, str, str]:
            shown = changed_json(messages, change)
            shown[answer] = {**shown[answer], "content": mark}
            return self._template.render(shown, changed_json(tools, change)).partition(mark)

        head, found, rest = parts(str)
        if not found or not head.startswith(self._template.render(messages[:answer], tools, answer=False)):
            return None
        whole, text = self._template.render(messages, tools), str(messages[answer]["content"])
        if not (whole.startswith(head) and whole.endswith(rest)):
            return None
        if whole[len(head) : len(whole) - len(rest)].strip() != text.strip():
            return None
        return self._chat.encoded(lambda change: parts(change)[2], spelt)

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """See Chat.token_texts."""
        return self._chat.token_texts(ids)

    def _check(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Raise like `prompt_ids`. The template remembers what passed."""
        for role in {message["role"] for message in messages} & _WITH_ROLE.keys():
            roles = _WITH_ROLE[role]
            self._template.check_opening([said.Message.of(each, "x") for each in roles], tools)
        if tools:
            self._template.check_opening([said.Message.of("user", "x")], tools)


def _spelt(messages: Sequence[Message], tools: Sequence[Message]) -> str:
    return json.dumps([list(messages), list(tools)], ensure_ascii=False)
