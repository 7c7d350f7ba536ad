"""Encodes what an environment says into the model's tokens. A conversation is only ever appended to.

    prompt_ids("Make 24 ...")        <|user|>Make 24 ...<|end|><|assistant|>
    the model's own tokens           {"cards": ...}<|end|>
    feedback_ids("You failed ...")   <|user|>You failed ...<|end|><|assistant|>

Sampled tokens are never decoded and encoded again. Control tokens come from the template alone: text that spells one
(`<|end|>`) is encoded letter by letter, whoever wrote it: an environment in any role, a tool's description, the system
prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlpost.config.keys import refusal
from rlpost.config.schema import RolloutConfig
from rlpost.envs.base import ExpertTurn
from rlpost.envs.messages import Message, Said, messages_of
from rlpost.errors import ConfigError, ModelError
from rlpost.rollout.chat_template import ChatTemplate, Tools
from rlpost.types import Example, Finish

_Layout = Callable[[Sequence[Message], Tools], str]  # renders a part of a conversation as text


class Chat:
    """One tokenizer and its chat template, under the run's chat settings.

    These are `system_prompt`, `template_args` and `stop` of `rollout`.

    Raises:
        ModelError: there is no chat template, or it does not end an assistant's turn with the tokenizer's eos.
        ConfigError: a setting does not fit this model.
    """

    def __init__(self, tokenizer: Any, settings: RolloutConfig | None = None) -> None:
        settings = settings or RolloutConfig()
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, settings)
        self.eos_id: int = tokenizer.eos_token_id
        self._control = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._stop = tuple(settings.stop)
        self._check_turn_end()
        self._refuse_stop()

    @classmethod
    def load(cls, model_folder: Path, settings: RolloutConfig | None = None) -> Chat:
        """Load the tokenizer of a model folder, with the chat settings of `cfg.rollout`."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(model_folder), settings)

    @property
    def template(self) -> ChatTemplate:
        """The chat template itself, for conversations that are not only appended to."""
        return self._template

    def prompt_ids(self, said: Said, tools: Tools = ()) -> tuple[int, ...]:
        """The tokens of the environment's first messages, system prompt and tools, up to the start of the answer.

        Raises ModelError if the template cannot write them, ConfigError for a second system prompt.
        """
        messages = self._template.opening(messages_of(said))
        self._template.check_opening(messages, tools)
        return self._encode(self._template.prompt, messages, tools)

    def prompt_text(self, said: Said, tools: Tools = ()) -> str:
        """The text that `prompt_ids` encodes."""
        return self._template.prompt(self._template.opening(messages_of(said)), tools)

    def feedback_ids(self, said: Said, finish: Finish, tools: Tools = ()) -> tuple[int, ...]:
        """The tokens between two answers: messages, preceded by the end of the turn if the model did not write it.

        `tools` are those of the prompt. Raises ModelError if the template does not append them to the conversation so
        far.
        """
        messages = messages_of(said)
        self._template.check_feedback(messages, tools)
        ids = self._encode(self._template.after_answer, messages, tools)
        return ids[1:] if finish is Finish.STOP else ids

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer as a model would sample it: up to a stop string, or with the end of its turn."""
        return self.written(answer, self._stop)[0]

    def written(self, answer: str, stop: Sequence[str]) -> tuple[tuple[int, ...], Finish]:
        """The tokens of an answer up to the one that completes any of `stop`, else with the end of the turn."""
        ids = self._ids(answer, plain=True)
        if any(text in self.text(ids) for text in stop):
            return ids[
                : _least(len(ids), lambda n: any(s in self.text(ids[:n]) for s in stop))
            ], Finish.STOP_STRING
        return (*ids, self.eos_id), Finish.STOP

    def text(self, answer_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self._tokenizer.decode(answer_ids, skip_special_tokens=True))

    def thought_tokens(self, answer_ids: Sequence[int], marker: str) -> int:
        """The number of an answer's tokens before `marker`; all of them if the marker does not occur.

        The token in which the marker begins counts as part of the answer proper.
        """
        start = self.text(answer_ids).find(marker)
        if start < 0:
            return len(answer_ids)
        return _least(len(answer_ids), lambda n: len(self.text(answer_ids[:n])) > start) - 1

    def example(self, conversation: Sequence[ExpertTurn], tools: Tools = ()) -> Example:
        """A supervised example of (observation, answer, learn) turns, laid out exactly as a rollout would be."""
        ids: list[int] = []
        mask: list[int] = []
        finish: Finish | None = None  # how the previous answer ended
        for said, answer, learn in conversation:
            context = self.feedback_ids(said, finish, tools) if finish else self.prompt_ids(said, tools)
            reply, finish = self.written(answer, self._stop)
            ids += (*context, *reply)
            mask += [0] * len(context) + [int(learn)] * len(reply)
        return Example(tuple(ids), tuple(mask))

    def encoded(self, layout: Callable[[Callable[[str], str]], str], spelt: str) -> tuple[int, ...]:
        """The tokens of a text written by the template. Its control tokens come from the template alone.

        `layout(change)` renders the text and passes everything that others say through `change`; `spelt` contains all
        that they say. The text is encoded in one piece, as the tokenizer was trained, unless others spell control
        tokens in it.
        """
        mark = _unused_in(spelt)
        whole, hidden = layout(str), layout(self._hiding(mark))
        ids = self._ids(whole)
        return (
            ids
            if self._controls(ids) == self._controls(self._ids(hidden))
            else self._encode_apart(hidden, mark)
        )

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each single token, with special tokens spelt out. A part of a character is U+FFFD."""
        return tuple(str(self._tokenizer.decode([i])) for i in ids)

    def _encode(self, layout: _Layout, messages: Sequence[Message], tools: Tools) -> tuple[int, ...]:
        """The tokens of a part of the conversation; see `encoded`."""
        spelt = "\0".join(
            (*(message.text for message in messages), json.dumps(list(tools), ensure_ascii=False))
        )

        def changed(change: Callable[[str], str]) -> str:
            said = [Message.of(message.role, change(message.text)) for message in messages]
            return layout(said, changed_json(tools, change))

        return self.encoded(changed, spelt)

    def _encode_apart(self, hidden: str, mark: str) -> tuple[int, ...]:
        """The tokens of a text with spellings of control tokens hidden, so all control tokens are the template's.

        The text is cut at control tokens, as the tokenizer itself would; the parts between are encoded as plain text.
        """
        ids_of = {text: i for i, text in self._control.items()}
        ids: list[int] = []
        for part in re.split(f"({self._spellings().pattern})", hidden):
            shown = re.sub(f"{mark}([0-9]+){mark}", lambda found: self._control[int(found[1])], part)
            ids += [ids_of[part]] if part in ids_of else self._ids(shown, plain=True)
        return tuple(ids)

    def _hiding(self, mark: str) -> Callable[[str], str]:
        """A function that replaces each spelling of a control token by its number between two marks."""
        ids_of = {text: i for i, text in self._control.items()}
        pattern = self._spellings()
        return lambda text: pattern.sub(lambda found: f"{mark}{ids_of[found.group()]}{mark}", text)

    def _spellings(self) -> re.Pattern[str]:
        """Matches any control token's text, the longest first if one begins with another."""
        return re.compile("|".join(map(re.escape, sorted(self._control.values(), key=len, reverse=True))))

    def _ids(self, text: str, plain: bool = False) -> tuple[int, ...]:
        """The token ids of a text. `plain`: spellings of control tokens are encoded as text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain))

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._control]

    def _check_turn_end(self) -> None:
        ids = self._ids(self._template.after_answer([Message.of("user", "x")]))
        if not ids or ids[0] != self.eos_id:
            raise ModelError(
                f"The chat template of {self._tokenizer.name_or_path} does not end an assistant's turn with the"
                f" tokenizer's eos token {self._tokenizer.eos_token!r}, so the engine could not tell when an answer"
                " ends. Set eos_token to the template's end-of-turn token in tokenizer_config.json."
            )

    def _refuse_stop(self) -> None:
        for text in self._stop:
            if found := self._spellings().search(text):
                reason = f"{found.group()} is a control token of the model, which is no text of an answer"
                remedy = "leave it out: the end of a turn ends an answer anyway"
                raise ConfigError(refusal("rollout.stop", text, reason, remedy))


def _least(high: int, holds: Callable[[int], bool]) -> int:
    """The least i from 1 to `high` for which `holds(i)`. It must hold for `high`, and for every i above the least."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def changed_json(value: Any, change: Callable[[str], str]) -> Any:
    """JSON data with every text in it, keys included, replaced by `change(text)`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): changed_json(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [changed_json(each, change) for each in value]
    return value


def _unused_in(text: str) -> str:
    """A character of the private use area that does not occur in `text`."""
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)
