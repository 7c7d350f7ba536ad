"""The conversation's tokens: only appended to, laid out as the chat template would, never encoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from rlpost.config.schema import RolloutConfig
from rlpost.envs.messages import Message, Role
from rlpost.errors import ConfigError, ModelError
from rlpost.rollout.chat import Chat
from rlpost.types import Finish
from rlpost.weights import models as shipped
from tests.unit.chat_templates import CHATML, CHATML_TOKENS, LLAMA_TOKENS, QWEN3, chatml, llama

CONVERSATION = [
    ("Make 24.", '{"formula": "1+1"}', False),
    ("You failed. Try again.", '{"formula": "24"}', True),
]


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}


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


CHATS = {
    "bundled": Chat.load(shipped.TINY),
    "chatml": Chat(chatml()),
    "llama": Chat(llama()),
}
ROLES: dict[str, list[Role]] = {
    "bundled": ["user", "assistant"],
    "chatml": ["system", "user", "assistant", "tool"],
    "llama": ["system", "user", "assistant", "tool"],
}
SPELLINGS = [
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|pad|>",
    *CHATML_TOKENS,
    *LLAMA_TOKENS,
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


def decoded(chat: Chat, ids: Sequence[int]) -> str:
    return str(chat._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@settings(max_examples=100, deadline=None)
@given(st.data(), texts)
@pytest.mark.parametrize("name", sorted(CHATS))
def test_text_stays_text_in_every_role(name: str, data: st.DataObject, text: str) -> None:
    """Decoded, the tokens are the template's text; their control tokens are those of the template around "x"."""
    chat = CHATS[name]
    talk = st.lists(st.tuples(st.sampled_from(ROLES[name]), texts), min_size=1, max_size=3)
    said = [Message.of(role, each) for role, each in data.draw(talk)]
    bland = [Message.of(message.role, "x") for message in said]
    prompt = chat.prompt_ids(said)
    assert decoded(chat, prompt) == chat.prompt_text(said)
    assert controls(chat, prompt) == controls(chat, chat.prompt_ids(bland))
    feedback = chat.feedback_ids(said, Finish.LENGTH)
    assert decoded(chat, feedback) == chat._template.after_answer(said)
    assert controls(chat, feedback) == controls(chat, chat.feedback_ids(bland, Finish.LENGTH))
    answer = chat.answer_ids(text)
    assert controls(chat, answer) == [chat.eos_id]
    assert chat.text(answer) == text
    example = chat.example([(said, text, False), (said, text, True)])
    assert example.token_ids == (*prompt, *answer, *feedback[1:], *answer)


@settings(max_examples=50, deadline=None)
@given(texts, texts)
def test_text_stays_text_in_tools_and_the_system_prompt(described: str, prompted: str) -> None:
    plain = Chat(llama(), RolloutConfig(system_prompt="x"))
    chat = Chat(llama(), RolloutConfig(system_prompt=prompted))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": {"description": described}}}}
    ids = chat.prompt_ids("Make 24.", [tool])
    assert decoded(chat, ids) == chat.prompt_text("Make 24.", [tool])
    assert controls(chat, ids) == controls(plain, plain.prompt_ids("Make 24.", [ADD]))


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


FEW_SHOT = [
    Message.of("system", "Add."),
    Message.of("user", "1+1"),
    Message.of("assistant", "2"),
    Message.of("user", "2+2"),
]


@pytest.mark.parametrize("name", ["chatml", "llama"])
def test_a_conversation_of_many_roles_is_what_the_template_writes(name: str) -> None:
    """The witness is the template itself, over the whole conversation at once."""
    chat = CHATS[name]
    results = [Message.of("tool", "4"), Message.of("tool", "five")]
    example = chat.example([(FEW_SHOT, "<tool_call>", False), (results, "4", True), ("And 3+3?", "6", True)])
    said = [*FEW_SHOT, Message.of("assistant", "<tool_call>"), *results, Message.of("assistant", "4")]
    said += [Message.of("user", "And 3+3?"), Message.of("assistant", "6")]
    whole = chat._tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.text} for message in said], tokenize=False
    )
    assert whole.startswith(decoded(chat, example.token_ids))
    assert whole.removeprefix(decoded(chat, example.token_ids)).strip() == ""  # a newline after the last turn
    learnt = [token for token, mask in zip(example.token_ids, example.loss_mask, strict=True) if mask]
    assert learnt == [*chat.answer_ids("4"), *chat.answer_ids("6")]  # no result, no call before it


def test_the_system_prompt_stands_first_and_alone() -> None:
    chat = Chat(llama(), RolloutConfig(system_prompt="Be brief."))
    said = (Message.of("system", "Be brief."), Message.of("user", "Make 24."))
    assert (
        chat.prompt_ids("Make 24.")
        == CHATS["llama"].prompt_ids(said)
        != CHATS["llama"].prompt_ids("Make 24.")
    )
    with pytest.raises(
        ConfigError, match=r"rollout\.system_prompt='Be brief\.'\n  reason: the environment says"
    ):
        chat.prompt_ids(said)


def test_a_system_prompt_is_refused_where_the_template_has_no_such_role() -> None:
    """The bundled template writes whatever is no user as the assistant; others leave it out, or raise."""
    wanted = RolloutConfig(system_prompt="Be brief.")
    with pytest.raises(ConfigError, match="no system role: it writes the role system as it writes assistant"):
        Chat.load(shipped.TINY, wanted)
    without = "{% for m in messages %}{% if m['role'] != 'system' %}"
    silent = CHATML.replace("{% for m in messages %}", without).replace(
        "{% endfor %}", "{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="it leaves out what the role system says"):
        Chat(chatml(silent), wanted)
    raising = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system!') }}{% endif %}" + CHATML
    )
    with pytest.raises(ConfigError, match="no system!"):
        Chat(chatml(raising), wanted)


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_role_that_the_template_mistakes_is_refused(chat: Chat, role: Role) -> None:
    with pytest.raises(ModelError, match=f"it writes the role {role} as it writes user"):
        chat.feedback_ids(Message.of(role, "4"), Finish.STOP)
    with pytest.raises(ModelError, match=f"it writes the role {role} as it writes user"):
        chat.prompt_ids((Message.of(role, "4"), Message.of("user", "?")))  # it stays refused


def test_a_template_that_drops_thinking_is_refused_where_it_would() -> None:
    """Qwen3's keeps what was thought between calls of tools, and drops it when the user says more."""
    chat = Chat(chatml(QWEN3))
    assert chat.feedback_ids(Message.of("tool", "4"), Finish.STOP)
    for _ in range(2):
        with pytest.raises(ModelError, match="drops or changes the thinking") as refused:
            chat.feedback_ids("Again.", Finish.STOP)
    assert "where '" in str(refused.value)
    assert "<think>" in str(refused.value)


def test_a_thinking_switch_is_given_to_the_template() -> None:
    chat = Chat(chatml(QWEN3), RolloutConfig(template_args={"enable_thinking": False}))
    assert (
        chat.prompt_text("Make 24.")
        == Chat(chatml(QWEN3)).prompt_text("Make 24.") + "<think>\n\n</think>\n\n"
    )
    with pytest.raises(ModelError, match="writes a turn otherwise once the conversation goes on"):
        chat.feedback_ids(Message.of("tool", "4"), Finish.STOP)  # the empty thought is not written again


@pytest.mark.parametrize("name", ["enable_thoughts", "content", "messages", "tokenize", "loop", "m"])
def test_an_argument_that_no_template_reads_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.template_args\.{name}=True"):
        Chat(chatml(QWEN3), RolloutConfig(template_args={name: True}))


def test_a_template_with_a_generation_block_can_be_asked_for_its_arguments() -> None:
    marked = QWEN3.replace("{{ m.content if", "{% generation %}{{ m.content if").replace(
        "lstrip('\n') }}", "lstrip('\n') }}{% endgeneration %}"
    )
    assert "endgeneration" in marked
    assert Chat(chatml(marked), RolloutConfig(template_args={"enable_thinking": True}))


def test_tools_are_told_or_refused() -> None:
    with_tools = CHATS["llama"].prompt_text("Make 24.", [ADD])
    assert '"name": "add"' in with_tools
    assert Chat(chatml(QWEN3)).prompt_ids("Make 24.", [ADD]) != Chat(chatml(QWEN3)).prompt_ids("Make 24.")
    with pytest.raises(ModelError, match="does not tell the model of the tools"):
        CHATS["chatml"].prompt_ids("Make 24.", [ADD])


def test_a_template_that_moves_the_tools_is_refused() -> None:
    """As Mistral's does: to the last message of the user."""
    moving = CHATML.replace(
        "{{ m['content'] | trim }}",
        "{% if tools and loop.last %}{{ tools | tojson }}{% endif %}{{ m['content'] | trim }}",
    )
    chat = Chat(chatml(moving))
    assert chat.prompt_ids("Make 24.", [ADD])
    assert chat.feedback_ids("Again.", Finish.STOP)
    with pytest.raises(ModelError, match="writes a turn otherwise"):
        chat.feedback_ids("Again.", Finish.STOP, [ADD])


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(random_model: Path) -> None:
    """A token a byte, so that the answer ends with the string itself; the end of turn is then context."""
    chat = Chat.load(random_model, RolloutConfig(stop=["</a>", "\n\n"]))
    plain = Chat.load(random_model)
    assert chat.answer_ids("<a>7</a> and more") == plain.answer_ids("<a>7</a>")[:-1]
    assert chat.written("no stop", ("</a>",)) == (plain.answer_ids("no stop"), Finish.STOP)
    assert chat.written("</a>", ("</a>",))[1] is Finish.STOP_STRING
    example = chat.example([("1?", "<a>7</a> and more", True), ("2?", "8", True)])
    assert example.token_ids == plain.example([("1?", "<a>7</a>", True), ("2?", "8", True)]).token_ids
    ends = [
        mask for token, mask in zip(example.token_ids, example.loss_mask, strict=True) if token == chat.eos_id
    ]
    assert ends[-2:] == [0, 1]  # what the model did not write is not learnt


def test_a_stop_string_of_control_tokens_is_refused(random_model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"rollout\.stop=a<\|end\|>\n  reason: <\|end\|> is a control token"
    ):
        Chat.load(random_model, RolloutConfig(stop=["a<|end|>"]))
