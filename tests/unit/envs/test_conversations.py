"""The shapes that rows of a data set may have: what is asked, what is learnt, and refusals by row."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs import registry
from rlpost.envs.base import Expert, Taught, is_scored
from rlpost.envs.dataset.conversation import BadRow, asked
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message, messages_of


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM, USER, BOT = said("system", "Be brief."), said("user", "2 + 2 ="), said("assistant", "4")
MORE, LAST = said("user", "and 1?"), said("assistant", "5")
OPENING = (Message.of("system", "Be brief."), Message.of("user", "2 + 2 ="))


def question(row: dict[str, Any], **args: Any) -> Any:
    return asked(row, Settings.checked({"path": "x", **args}))


@pytest.mark.parametrize(
    ("row", "observation", "lesson"),
    [
        ({"prompt": "2 + 2 ="}, "2 + 2 =", ()),
        ({"messages": [USER]}, "2 + 2 =", ()),
        ({"prompt": [SYSTEM, USER], "answer": 4}, OPENING, ()),
        ({"prompt": "2 + 2 =", "completion": "4"}, "2 + 2 =", (("2 + 2 =", "4", True),)),
        ({"prompt": [USER], "completion": [BOT]}, "2 + 2 =", (("2 + 2 =", "4", True),)),
        ({"prompt": [SYSTEM, USER], "completion": "4"}, OPENING, ((OPENING, "4", True),)),
        ({"messages": [SYSTEM, USER, BOT]}, OPENING, ((OPENING, "4", True),)),
        (
            {"messages": [SYSTEM, USER, BOT, MORE, LAST]},
            (*OPENING, Message.of("assistant", "4"), Message.of("user", "and 1?")),
            ((OPENING, "4", True), ("and 1?", "5", True)),
        ),
        (
            {"prompt": [USER, BOT, MORE], "completion": [LAST]},
            (*messages_of("2 + 2 ="), Message.of("assistant", "4"), *messages_of("and 1?")),
            (("2 + 2 =", "4", False), ("and 1?", "5", True)),
        ),
        (
            {"prompt": [USER], "completion": [BOT, MORE, LAST]},
            (*messages_of("2 + 2 ="), Message.of("assistant", "4"), *messages_of("and 1?")),
            (("2 + 2 =", "4", True), ("and 1?", "5", True)),
        ),
        (
            {"messages": [said("user", [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2 ="}])]},
            "2 + 2 =",
            (),
        ),
    ],
)  # fmt: skip
def test_a_rows_shape_decides_what_is_asked_and_learnt(row: Any, observation: object, lesson: object) -> None:
    found = question(row)
    assert messages_text(found.observation) == messages_text(observation)
    assert [(messages_text(shown), answer, learn) for shown, answer, learn in found.lesson] == [
        (messages_text(shown), answer, learn)
        for shown, answer, learn in lesson  # type: ignore[attr-defined]
    ]
    assert found.data is row


def messages_text(observation: Any) -> list[tuple[str, str]]:
    return [(each.role, each.text) for each in messages_of(observation)]


def test_other_fields_may_be_named_and_an_instruction_follows_the_users_last_words() -> None:
    found = question({"talk": [USER, BOT], "q": 1}, messages="talk", instruction="Only the number.")
    assert found.observation == "2 + 2 =\nOnly the number."
    assert found.lesson == (("2 + 2 =\nOnly the number.", "4", True),)
    assert question({"q": "2 + 2 =", "a": "4"}, prompt="q", expert="a").lesson == (("2 + 2 =", "4", True),)
    assert question({"prompt": "2", "messages": [USER, BOT]}, prompt=None).observation == "2 + 2 ="
    assert question({"prompt": "2", "messages": [USER, BOT]}, messages=None).observation == "2"


def test_fields_of_a_message_that_say_nothing_are_passed_over() -> None:
    empty = {"tool_calls": None, "thinking": "", "name": "Ann", "tool_call_id": "1"}
    assert question({"messages": [USER | empty, BOT | empty]}).lesson == (("2 + 2 =", "4", True),)


def test_what_is_asked_is_one_instance_in_every_shape() -> None:
    rows = [{"prompt": "2 + 2 ="}, {"messages": [USER, BOT]}, {"prompt": [USER], "completion": "4"}]
    assert len({question(row).instance for row in rows}) == 1
    assert question({"messages": [SYSTEM, USER]}).instance != question(rows[0]).instance


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "x", "messages": [USER]}, "has both 'prompt' and 'messages': name the one .*env_args.prompt=null"),
        ({"text": "x"}, r"its field 'prompt' is missing \(there are text\), but must be a text or messages"),
        ({"prompt": None}, "its field 'prompt' is None, but must be a text or messages"),
        ({"prompt": 3}, "its field 'prompt' is 3, but must be a text or messages"),
        ({"messages": []}, r"its field 'messages' is \[\], but must be a text or messages"),
        ({"messages": [USER, "hello"]}, "message 1 of 'messages' is 'hello', but must have role and content"),
        ({"messages": [{"from": "human", "value": "x"}]}, "message 0 of 'messages' is {'from'.*must have role and"),
        ({"messages": [said("human", "x")]}, "message 0 of 'messages' has the role 'human': there are system, user"),
        ({"messages": [said("user", None)]}, "has the content None, but must have a text or parts of text"),
        ({"messages": [said("user", [])]}, r"has the content \[\], but must have a text or parts of text"),
        ({"messages": [said("user", " ")]}, "message 0 of 'messages' is ' ', but must be a text"),
        (
            {"messages": [said("user", [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": "x"}])]},
            "message 0 of 'messages' has a part of type 'image_url': only text can be read",
        ),
        ({"messages": [said("user", "\ud800")]}, "holds half a surrogate pair"),
        ({"messages": [BOT, USER]}, "'messages' begins with a message of the assistant"),
        ({"messages": [USER, BOT, BOT]}, "two messages of the assistant, one right after the other"),
        ({"messages": [SYSTEM, BOT]}, "no message of the user comes before the answer"),
        ({"messages": [SYSTEM]}, "no message of the user comes before the answer"),
        ({"prompt": [USER, BOT]}, "its field 'prompt' ends with a message of the assistant, and has no 'completion'"),
        ({"prompt": [USER, BOT], "completion": "4"}, "ends with a message of the assistant, and 'completion' is anoth"),
        ({"prompt": "x", "completion": [USER]}, "its field 'completion' is no answer: its messages are user"),
        ({"prompt": "x", "completion": [BOT, MORE]}, "its field 'completion' is no answer.*assistant, user"),
        ({"messages": [USER, BOT | {"tool_calls": [{"id": "1"}]}]}, "message 1 of 'messages' has 'tool_calls', which"),
        ({"messages": [USER, BOT | {"weight": 0}, MORE, LAST]}, "message 1 of 'messages' has 'weight', which is not"),
        ({"prompt": "x", "completion": [BOT | {"thinking": "so"}]}, "message 0 of 'completion' has 'thinking', which"),
        ({"prompt": "x", "completion": 4}, "its field 'completion' is 4, but must be a text or messages"),
    ],
)  # fmt: skip
def test_a_row_of_no_shape_is_refused_by_what_was_seen(row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRow, match=told):
        question(row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "user"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["prompt", "messages", "completion", "answer"]), JSON, max_size=4))
def test_any_row_is_asked_or_refused(row: dict[str, Any]) -> None:
    try:
        found = question(row)
    except BadRow:
        return
    assert any(each.role == "user" for each in messages_of(found.observation))
    assert all(answer.strip() for _, answer, _ in found.lesson)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TALKS = [{"messages": [said("user", f"{n} + 1 ="), said("assistant", str(n + 1))]} for n in range(40)]


def test_a_data_set_without_a_scorer_teaches_and_says_that_it_scores_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "talks.jsonl", TALKS)
    env: Any = registry.make("dataset", path=path)
    assert isinstance(env, Expert)
    assert isinstance(env, Taught)
    assert not is_scored(env)
    trained, held_out = env.lessons("default", "train"), env.lessons("default", "eval")
    assert len(trained) + len(held_out) == 40
    assert not {name for name, _ in trained} & {name for name, _ in held_out}
    shown, info = env.reset(seed=0, options={"variant": "default", "split": "train"})
    assert (info["instance"], env.expert(False, random.Random(0))) in [
        (n, list(lesson)) for n, lesson in trained
    ]
    assert env.expert(False, random.Random(0))[0][0] == shown


def test_rows_with_and_without_answers_are_refused_together(tmp_path: Path) -> None:
    rows = [*TALKS, {"messages": [said("user", "9 + 9 =")]}]
    with pytest.raises(
        Refused, match=r"1 of 41 rows have no answer to learn from, and others have: .*talks.jsonl:41"
    ):
        registry.make("dataset", path=written(tmp_path / "talks.jsonl", rows))


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    rows = [*TALKS, {"messages": [said("robot", "x")]}]
    with pytest.raises(
        Refused, match=r"1 rows cannot be used: .*talks.jsonl:41: message 0 of 'messages' has the role"
    ):
        registry.make("dataset", path=written(tmp_path / "talks.jsonl", rows))


def test_feather_and_parquet_hold_messages(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pyarrow.Table.from_pylist(TALKS)
    feather.write_feather(table, str(tmp_path / "talks.feather"))
    parquet.write_table(table, tmp_path / "talks.parquet")
    for name in ("talks.feather", "talks.parquet"):
        env: Any = registry.make("dataset", path=str(tmp_path / name))
        assert len(env.lessons("default", "all")) == 40


def test_what_the_package_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(TALKS)
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    env: Any = registry.make("dataset", path=str(tmp_path / "saved"))
    assert len(env.lessons("default", "all")) == 40
    with pytest.raises(Refused, match=r"holds several splits; name one: .*splits/train"):
        registry.make("dataset", path=str(tmp_path / "splits"))


class TestHub:
    @pytest.fixture
    def asked_for(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, config: str | None, *, revision: str | None, split: str) -> Any:
            calls.append((name, config, revision, split))
            if name == "no/where":
                raise ConnectionError("no route")
            return TALKS

        double = types.ModuleType("datasets")
        double.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", double)
        return calls

    @pytest.mark.parametrize(
        ("path", "call"),
        [
            ("hf:some-one/talks_2", ("some-one/talks_2", None, None, "train")),
            ("hf:a/b:main", ("a/b", "main", None, "train")),
            ("hf:a/b@refs/pr/1", ("a/b", None, "refs/pr/1", "train")),
            ("hf:a/b:main@e53f048#test", ("a/b", "main", "e53f048", "test")),
        ],
    )
    def test_an_id_names_configuration_revision_and_split(
        self, path: str, call: tuple[Any, ...], asked_for: list[tuple[Any, ...]]
    ) -> None:
        env: Any = registry.make("dataset", path=path, eval_share=0.25)
        assert len(env.lessons("default", "all")) == 40
        assert call in asked_for

    @pytest.mark.parametrize("path", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b#", "hf:a/b:x:y", "hf:../b c"])
    def test_another_form_is_refused(self, path: str) -> None:
        with pytest.raises(Refused, match="is no name of a data set; write hf:OWNER/NAME"):
            registry.make("dataset", path=path)

    def test_what_cannot_be_had_is_told(self, asked_for: list[tuple[Any, ...]]) -> None:
        with pytest.raises(
            Refused, match=r"hf:no/where: cannot be had: ConnectionError: no route; see its name"
        ):
            registry.make("dataset", path="hf:no/where")

    def test_without_the_package_the_remedy_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(
            Refused, match=r"datasets, which fetches it, is not installed; pip install 'rlpost\[hub\]'"
        ):
            registry.make("dataset", path="hf:a/b")
