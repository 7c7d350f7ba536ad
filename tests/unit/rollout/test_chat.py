"""The conversation's tokens: only appended to, laid out as the chat template would, never encoded twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlpost.errors import ModelError
from rlpost.rollout.chat import Chat
from rlpost.types import Finish

CONVERSATION = [
    ("Make 24.", '{"formula": "1+1"}', False),
    ("You failed. Try again.", '{"formula": "24"}', True),
]


@pytest.fixture(scope="module")
def chat(random_model: Path) -> Chat:
    return Chat.load(random_model)


def template_ids(folder: Path, turns: list[tuple[str, str, bool]]) -> list[int]:
    """The witness: the whole conversation through the template at once."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        message
        for user, assistant, _ in turns
        for message in ({"role": "user", "content": user}, {"role": "assistant", "content": assistant})
    ]
    return tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)


def test_example_equals_the_template_and_marks_learnt_answers(chat: Chat, random_model: Path) -> None:
    example = chat.example(CONVERSATION)
    assert list(example.token_ids) == template_ids(random_model, CONVERSATION)
    learnt = [token for token, mask in zip(example.token_ids, example.loss_mask, strict=True) if mask]
    assert tuple(learnt) == chat.answer_ids(CONVERSATION[1][1])


def test_feedback_closes_an_answer_that_was_cut(chat: Chat) -> None:
    closed = chat.feedback_ids("no", Finish.STOP)
    assert chat.feedback_ids("no", Finish.LENGTH) == (chat.eos_id, *closed)


@pytest.mark.parametrize(("answer", "thought"), [("so: {'f'", 4), ("{", 0), ("no marker", 10), ("é: {", 3)])
def test_thought_ends_where_the_marker_begins(chat: Chat, answer: str, thought: int) -> None:
    """The tokenizer has a token a byte (é is two); without the marker all is thought, the end of turn included."""
    ids = chat.answer_ids(answer)
    expected = thought + answer.count("é")
    assert chat.thought_tokens(ids, "{") == expected
    assert chat.text(ids[:expected]) == answer.partition("{")[0]


def test_text_drops_special_tokens_only(chat: Chat) -> None:
    assert chat.text(chat.answer_ids("3*8 = 24")) == "3*8 = 24"


def test_a_tokenizer_without_template_is_refused(random_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        Chat(tokenizer)


def test_a_template_that_does_not_end_turns_with_eos_is_refused(random_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|user|>{% endfor %}"
    with pytest.raises(ModelError, match="eos token"):
        Chat(tokenizer)
