"""Between an environment's texts and the model's tokens. A conversation is only ever appended to.

    prompt_ids("Make 24 ...")        <|user|>Make 24 ...<|end|><|assistant|>
    the model's own tokens           {"cards": ...}<|end|>
    feedback_ids("You failed ...")   <|user|>You failed ...<|end|><|assistant|>

What the model sampled is never decoded and encoded again. Control tokens come from the template alone: a text that
spells one (`<|end|>`) is encoded as the letters it is made of, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlpost.errors import ModelError
from rlpost.types import Example, Finish

_ANSWER = "rlpost-answer-mark"  # stands for an answer while the template is taken apart


class Chat:
    """The chat template of one tokenizer, taken apart once.

    Raises:
        ModelError: no chat template, or one that does not end an assistant's turn with the tokenizer's eos.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path} has no chat template; rlpost needs one to build prompts."
            )
        self.eos_id: int = tokenizer.eos_token_id
        self._control = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._check_turn_end()

    @classmethod
    def load(cls, model_folder: Path) -> Chat:
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(model_folder))

    @property
    def tokenizer(self) -> Any:
        """Whose chat template this is."""
        return self._tokenizer

    def prompt_ids(self, observation: str) -> tuple[int, ...]:
        """The first user turn, up to where the model's answer begins."""
        return self._encode(self.prompt_text, observation)

    def prompt_text(self, observation: str) -> str:
        """The text that `prompt_ids` encodes."""
        return self._render([_user(observation)])

    def feedback_ids(self, feedback: str, finish: Finish) -> tuple[int, ...]:
        """What stands between two answers: a user turn, and before it the end of the turn if the model wrote none."""
        ids = self._encode(self._after_answer, feedback)
        return ids[1:] if finish is Finish.STOP else ids

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """An answer as a model that writes it would sample it, end of turn included."""
        return (*self._ids(answer, plain=True), self.eos_id)

    def text(self, answer_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self._tokenizer.decode(answer_ids, skip_special_tokens=True))

    def thought_tokens(self, answer_ids: Sequence[int], marker: str) -> int:
        """How many of an answer's first tokens come before `marker`; all of them if it does not stand there.

        The token in which the marker begins is the answer's.
        """
        start = self.text(answer_ids).find(marker)
        if start < 0:
            return len(answer_ids)
        low, high = (
            0,
            len(answer_ids),
        )  # the first `low` tokens end at or before the marker, the first `high` after
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(self.text(answer_ids[:middle])) <= start else (low, middle)
        return low

    def example(self, conversation: Sequence[tuple[str, str, bool]]) -> Example:
        """A supervised example of (observation, answer, learn) turns, laid out exactly as a rollout would be."""
        ids: list[int] = []
        mask: list[int] = []
        for turn, (observation, answer, learn) in enumerate(conversation):
            context = self.feedback_ids(observation, Finish.STOP) if turn else self.prompt_ids(observation)
            reply = self.answer_ids(answer)
            ids += (*context, *reply)
            mask += [0] * len(context) + [int(learn)] * len(reply)
        return Example(tuple(ids), tuple(mask))

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode(self, layout: Callable[[str], str], content: str) -> tuple[int, ...]:
        """The tokens of `layout(content)`, a part of the chat template; its control tokens are the template's own.

        In one piece, as the tokenizer was trained, unless `content` brings control tokens of its own.
        """
        whole = self._ids(layout(content))
        if self._controls(whole) == self._controls(self._ids(layout("x"))):
            return whole
        return self._encode_apart(layout, content)

    def _encode_apart(self, layout: Callable[[str], str], content: str) -> tuple[int, ...]:
        """With what `content` spells hidden while the template's control tokens are found.

        The text is cut at those, as the tokenizer itself would; what is between them is encoded as plain text.
        """
        ids_of = {text: i for i, text in self._control.items()}
        longest_first = sorted(ids_of, key=len, reverse=True)
        control = re.compile("|".join(map(re.escape, longest_first)))
        mark = _unused_in(content)
        hidden = control.sub(lambda found: f"{mark}{ids_of[found.group()]}{mark}", content)
        ids: list[int] = []
        for part in re.split(f"({control.pattern})", layout(hidden)):
            shown = re.sub(f"{mark}([0-9]+){mark}", lambda found: self._control[int(found[1])], part)
            ids += [ids_of[part]] if part in ids_of else self._ids(shown, plain=True)
        return tuple(ids)

    def _ids(self, text: str, plain: bool = False) -> tuple[int, ...]:
        """`plain`: a control token's spelling is text."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain))

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._control]

    def _after_answer(self, feedback: str) -> str:
        messages = [_user("x"), {"role": "assistant", "content": _ANSWER}, _user(feedback)]
        return self._render(messages).partition(_ANSWER)[2]

    def _check_turn_end(self) -> None:
        ids = self._ids(self._after_answer("x"))
        if not ids or ids[0] != self.eos_id:
            raise ModelError(
                f"The chat template of {self._tokenizer.name_or_path} does not end an assistant's turn with the"
                f" tokenizer's eos token {self._tokenizer.eos_token!r}, so the engine could not tell when an answer"
                " ends. Set eos_token to the template's end-of-turn token in tokenizer_config.json."
            )


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _unused_in(text: str) -> str:
    """A character of the private use area that `text` does not have."""
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)
