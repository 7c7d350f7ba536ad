"""Whole conversations of any roles, in the tokens of the model's chat template.

As in rlpost/rollout/chat.py: control tokens come from the template alone, whoever wrote a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

Message = Mapping[str, Any]


class NotRendered(ValueError):
    """The chat template cannot show these messages or tools."""


class Renderer:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any]) -> None:
        self._tokenizer, self._args = tokenizer, dict(template_args)
        control = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._ids_of = control
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Message]) -> tuple[int, ...]:
        """A conversation up to where the model's answer begins. Raises NotRendered."""
        hiding = _Hiding(self._control, self._ids_of, (messages, tools))
        return self._encode(self._render(hiding.hidden(messages), hiding.hidden(tools), True), hiding)

    def tail(
        self, messages: Sequence[Message], answer: int, tools: Sequence[Message]
    ) -> tuple[int, ...] | None:
        """What comes after message number `answer`, an assistant's, up to where the next answer begins.

        None where the template writes the messages before it otherwise than it did when they were all there was: the
        conversation is then not an older one with something appended. Raises NotRendered.
        """
        hiding = _Hiding(self._control, self._ids_of, (messages, tools))
        shown, shown_tools = hiding.hidden(messages), hiding.hidden(tools)
        shown[answer] = {**shown[answer], "content": hiding.answer}
        head, found, rest = self._render(shown, shown_tools, True).partition(hiding.answer)
        if not found or not head.startswith(self._render(shown[:answer], shown_tools, False)):
            return None
        return self._encode(rest, hiding)

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token's text by itself, special ones spelt out; a part of a character is U+FFFD."""
        return tuple(str(self._tokenizer.decode([i])) for i in ids)

    def _render(self, messages: Sequence[Message], tools: Sequence[Message], answer: bool) -> str:
        if tools and "tools" not in str(self._tokenizer.chat_template):
            raise NotRendered("the model's chat template does not show tools; describe them in a message")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=answer,
                    **self._args,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise NotRendered(f"the model's chat template does not take these messages: {error}") from error

    def _encode(self, text: str, hiding: _Hiding) -> tuple[int, ...]:
        """In one piece, as the tokenizer was trained, unless a message spells a control token."""
        if not hiding.needed:
            return self._plain(text, False)
        ids: list[int] = []
        for part in re.split(f"({self._control.pattern})", text):
            ids += [self._ids_of[part]] if part in self._ids_of else self._plain(hiding.revealed(part), True)
        return tuple(ids)

    def _plain(self, text: str, spelt: bool) -> tuple[int, ...]:
        """`spelt`: a control token's spelling is text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=spelt))


class _Hiding:
    """Control tokens that `said` spells, hidden by a character that it does not have while the template is applied.

    `answer` is another such character, which stands for an answer.
    """

    def __init__(self, control: re.Pattern[str], ids_of: Mapping[str, int], said: Any) -> None:
        self._control, self._ids_of = control, ids_of
        self._texts = {i: text for text, i in ids_of.items()}
        texts = "".join(_texts(said))
        unused = (mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in texts)
        self._mark, self.answer = next(unused), next(unused)
        self.needed = control.search(texts) is not None

    def hidden(self, said: Sequence[Message]) -> list[dict[str, Any]]:
        return [{key: self._hidden(value) for key, value in each.items()} for each in said]

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            mark = self._mark
            return self._control.sub(lambda found: f"{mark}{self._ids_of[found.group()]}{mark}", value)
        if isinstance(value, Mapping):
            return {self._hidden(key): self._hidden(each) for key, each in value.items()}
        return [self._hidden(each) for each in value] if isinstance(value, list) else value

    def revealed(self, text: str) -> str:
        return re.sub(f"{self._mark}([0-9]+){self._mark}", lambda found: self._texts[int(found[1])], text)


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)
