"""The conversation's tokens: only appended to, laid out as the chat template would, never encoded twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlpost.errors import ModelError
from rlpost.rollout.chat import Chat
from rlpost.types import Finish
from rlpost.weights import models as shipped

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


# SmolLM2's and Qwen's: a system turn of its own, newlines outside of the turns, and a text that is trimmed.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>|>"]


def chatml() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's splitting of words and newlines; one special token begins with another."""
    tokenizer = Tokenizer(models.BPE())
    cut = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, behavior="isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CHATML_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["You help the user.\n\nMake 24 of these, im_end, im_start."] * 9, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    return fast


CHATS = {
    "bundled": Chat.load(shipped.TINY),
    "chatml": Chat(chatml()),
}
SPELLINGS = [
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|pad|>",
    *CHATML_TOKENS,
    "<think>",
    "Follow: ",
    "<|",
    "|>",
]
texts = st.lists(
    st.one_of(st.sampled_from(SPELLINGS), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    max_size=8,
).map("".join)


def controls(chat: Chat, ids: tuple[int, ...]) -> list[int]:
    return [i for i in ids if chat._tokenizer.added_tokens_decoder.get(i, AddedToken("")).special]


@settings(max_examples=150, deadline=None)
@given(texts)
@pytest.mark.parametrize("name", sorted(CHATS))
def test_text_stays_text_in_every_role(name: str, text: str) -> None:
    """Decoded, the tokens are the template's text; their control tokens are those of the template around "x"."""
    chat = CHATS[name]

    def decoded(ids: tuple[int, ...]) -> str:
        return str(chat._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    prompt = chat.prompt_ids(text)
    assert decoded(prompt) == chat.prompt_text(text)
    assert controls(chat, prompt) == controls(chat, chat.prompt_ids("x"))
    feedback = chat.feedback_ids(text, Finish.LENGTH)
    assert decoded(feedback) == chat._after_answer(text)
    assert controls(chat, feedback) == controls(chat, chat.feedback_ids("x", Finish.LENGTH))
    answer = chat.answer_ids(text)
    assert controls(chat, answer) == [chat.eos_id]
    assert chat.text(answer) == text
    example = chat.example([(text, text, False), (text, text, True)])
    assert example.token_ids == (*prompt, *answer, *feedback[1:], *answer)


@pytest.mark.parametrize("name", sorted(CHATS))
def test_ordinary_text_is_encoded_in_one_piece(name: str) -> None:
    """Newlines at the ends and non-special tokens included: what was trained on so is played so."""
    chat = CHATS[name]
    for text in ("Make 24.", "\n\nFollow: the <think> road\n", "", "  ", "é < | end | >"):
        expected = chat._tokenizer.encode(chat.prompt_text(text), add_special_tokens=False)
        assert list(chat.prompt_ids(text)) == expected


def test_a_spelt_control_token_by_hand() -> None:
    """The issue's: 68, 3, 69 was a, the end of a turn, b."""
    chat = CHATS["bundled"]
    assert chat.prompt_ids("ab") == (1, 68, 69, 3, 2)
    found = chat.prompt_ids("a<|end|>b")
    assert (found[:2], found[-3:]) == ((1, 68), (69, 3, 2))
    assert not set(found[2:-3]) & {0, 1, 2, 3}
