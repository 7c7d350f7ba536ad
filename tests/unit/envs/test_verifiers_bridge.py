"""The bridge to verifiers: texts and rows without the package, episodes with it."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs import registry
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.messages import Message, messages_of
from rlpost.envs.splits import Split
from rlpost.envs.tool_calls import Malformed
from rlpost.envs.verifiers.conversation import answer_of, message_of
from rlpost.envs.verifiers.rows import Row, divided, instance_of

CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'


def test_an_answers_calls_are_read_and_its_text_is_what_stands_before() -> None:
    found = answer_of(f"I add. {CALL}{CALL} done", with_tools=True)
    assert (found.content, [call.name for call in found.calls], found.malformed) == (
        "I add.",
        ["add", "add"],
        None,
    )


@pytest.mark.parametrize("text", [CALL, "no call", ""])
def test_without_tools_an_answer_is_text(text: str) -> None:
    assert answer_of(text, with_tools=False).content == text
    assert not answer_of(text, with_tools=False).calls


def test_one_malformed_call_makes_the_whole_answer_text() -> None:
    text = f"{CALL}<tool_call>{{"
    found = answer_of(text, with_tools=True)
    assert (found.content, found.calls, found.malformed) == (text, (), Malformed.UNCLOSED)


def test_a_call_of_a_tool_that_is_not_there_is_verifiers_to_answer() -> None:
    found = answer_of('<tool_call>{"name": "nobody"}</tool_call>', with_tools=True)
    assert [call.name for call in found.calls] == ["nobody"]


@given(st.text(), st.booleans())
def test_no_answer_is_lost(text: str, with_tools: bool) -> None:
    found = answer_of(text, with_tools)
    assert found.calls or found.content == text


def test_messages_are_read_from_dicts_and_from_objects() -> None:
    call = SimpleNamespace(name="add", arguments='{"a": 2, "b": 3}')
    spoken = SimpleNamespace(role="assistant", content="I add.", tool_calls=[call])
    assert message_of({"role": "user", "content": "hi"}) == Message.of("user", "hi")
    assert message_of({"role": "tool", "content": [{"type": "text", "text": "5"}]}) == Message.of("tool", "5")
    assert answer_of(message_of(spoken).text, True).calls[0].arguments == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "developer", "content": "hi"}, "developer"),
        ({"role": "user", "content": 3}, "int"),
    ],
)
def test_what_is_not_carried_is_named(message: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named):
        message_of(message)


def rows(*asked: str) -> list[Row]:
    made = [{"prompt": each, "answer": each} for each in asked]
    return [Row(f"row {place}", instance_of(data), data) for place, data in enumerate(made)]


def asked(found: tuple[Row, ...]) -> list[str]:
    return [row.data["prompt"] for row in found]


def test_an_instance_of_both_sets_is_only_trained_on() -> None:
    found = divided("x", {"train": rows("a", "b", "a"), "eval": rows("b", "c")})
    assert asked(found.by_split[Split.TRAIN]) == ["a", "b"]
    assert asked(found.by_split[Split.EVAL]) == ["c"]
    assert asked(found.by_split[Split.ALL]) == ["a", "b", "c"]
    assert len(found.remarks) == 2


def test_a_single_set_is_split_by_hash_and_nothing_is_lost() -> None:
    found = divided("x", {"eval": rows(*map(str, range(200)))})
    parts = [set(asked(found.by_split[each])) for each in (Split.TRAIN, Split.EVAL)]
    assert parts[0] | parts[1] == set(map(str, range(200)))
    assert not parts[0] & parts[1]
    assert 30 < len(parts[1]) < 90


def test_rows_that_ask_the_same_and_want_different_are_different_instances() -> None:
    assert instance_of({"prompt": "guess", "answer": "crane"}) != instance_of(
        {"prompt": "guess", "answer": "slate"}
    )
    assert instance_of({"prompt": "x", "extra": 1}) == instance_of({"prompt": "x", "extra": 2})


def test_no_rows_are_refused() -> None:
    with pytest.raises(Refused, match="no rows"):
        divided("x", {})


def test_without_the_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(UnknownEnvironment, match="verifiers cannot be imported"):
        registry.make("verifiers:wordle")


def test_an_environments_name_is_code_that_a_record_may_name() -> None:
    assert registry.own_code("verifiers:owner/my-env", {}) == {"env": "verifiers:owner/my-env"}
    assert registry.module_named("verifiers:owner/my-env") == "my_env"


# With the real package.

ENVIRONMENT = """
    import asyncio
    import verifiers as vf
    from datasets import Dataset

    async def right(completion, answer):
        await asyncio.sleep(0)
        return 1.0 if completion[-1]["content"] == answer else 0.0

    def short(completion):
        return 1.0 if len(completion[-1]["content"]) < 4 else 0.0

    def broken(completion):
        raise KeyError("boom")

    def together(completions):
        return [0.0 for _ in completions]

    def add(a: int, b: int) -> int:
        \"\"\"Add two numbers.

        Args:
            a: one
            b: the other
        \"\"\"
        return a + b

    class Twice(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **kwargs):
            return [{"role": "user", "content": f"Sure of {messages[-1]['content']}?"}]

    FUNCTIONS = {"right": [right, short], "broken": [right, broken], "together": [together]}

    def load_environment(kind: str = "single", rubric: str = "right", rows: int = 20):
        data = Dataset.from_list([{"question": f"2+{n}?", "answer": str(2 + n)} for n in range(rows)])
        rubric = vf.Rubric(funcs=FUNCTIONS[rubric], weights=[1.0, 0.5][: len(FUNCTIONS[rubric])])
        if kind == "tools":
            return vf.ToolEnv(dataset=data, rubric=rubric, tools=[add], max_turns=4)
        shots = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
        made = vf.SingleTurnEnv if kind == "single" else Twice
        more = {} if kind == "single" else {"max_turns": 2}
        return made(dataset=data, rubric=rubric, system_prompt="Add.", few_shot=shots, **more)
"""


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("verifiers", reason="the package verifiers is not installed here")
    pytest.importorskip("datasets", reason="the package datasets is not installed here")
    (tmp_path / "bridged_env.py").write_text(dedent(ENVIRONMENT), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bridged_env", raising=False)
    return "verifiers:bridged-env"


def right_answer(env: Any) -> str:
    return str(env.unwrapped._episode._row["answer"])


def test_one_turn_is_scored_by_the_rubric(named: str) -> None:
    env = registry.make(named)
    said, info = env.reset(seed=1, options={"split": "train"})
    assert [message.role for message in messages_of(said)] == ["system", "user", "assistant", "user"]
    _, reward, terminated, truncated, told = env.step(right_answer(env))
    assert (reward, terminated, truncated, told["outcome"]) == (1.5, True, False, "SUCCESS")
    assert (told["parts"]["right"], told["parts"]["short"]) == (1.0, 1.0)
    assert env.reset(seed=1, options={"split": "train"})[1] == info
    assert env.step("wrong")[1:3] == (0.0, True)
    env.close()


def test_turns_go_on_until_verifiers_ends_them(named: str) -> None:
    env = registry.make(named, kind="twice")
    env.reset(seed=2)
    said, reward, terminated, _, told = env.step("7")
    assert (said, reward, terminated, told["outcome"]) == (
        (Message.of("user", "Sure of 7?"),),
        0.0,
        False,
        "CONTINUED",
    )
    assert env.step(right_answer(env))[1:3] == (1.5, True)
    env.close()


def test_tools_are_declared_called_and_answered(named: str) -> None:
    env = registry.make(named, kind="tools")
    env.reset(seed=3)
    assert env.unwrapped.tools[0]["function"]["name"] == "add"
    said, _, terminated, _, _ = env.step(CALL)
    assert (said, terminated) == ((Message.of("tool", "5"),), False)
    said = env.step('<tool_call>{"name": "nobody"}</tool_call>')[0]
    assert [message.role for message in messages_of(said)] == ["tool"]
    _, _, terminated, _, told = env.step("<tool_call>{")
    assert (terminated, told["outcome"]) == (True, "MALFORMED_CALL")
    env.close()


def test_a_reward_function_that_raises_breaks_the_episode_by_name(named: str) -> None:
    env = registry.make(named, rubric="broken")
    env.reset(seed=4)
    with pytest.raises(RuntimeError, match="the reward function broken raised KeyError"):
        env.step("3")
    env.reset(seed=4)
    env.close()


def test_an_unfinished_episode_is_left_for_the_next(named: str) -> None:
    env = registry.make(named, kind="twice")
    env.reset(seed=5)
    env.step("7")
    env.reset(seed=6)
    env.step("7")
    assert env.step("8")[2]
    env.close()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"rubric": "together"}, "several answers together"),
        ({"nope": 1}, "unknown argument nope"),
        ({"rows": 0}, ""),
    ],
)
def test_what_is_not_carried_is_refused(named: str, args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        registry.make(named, **args)


def test_an_environment_that_is_not_there_is_refused(named: str) -> None:
    with pytest.raises(UnknownEnvironment, match="no module nobodys_env"):
        registry.variants("verifiers:nobodys-env")


def test_the_packages_own_reasoning_gym_environment_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("verifiers", reason="the package verifiers is not installed here")
    pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed here")
    text = """
        import verifiers as vf
        def load_environment(**args):
            return vf.ReasoningGymEnv(num_train_examples=20, num_eval_examples=10, **args)
    """
    (tmp_path / "legs_env.py").write_text(dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    env = registry.make("verifiers:legs-env", gym="leg_counting")
    env.reset(seed=0, options={"split": "eval"})
    inner = env.unwrapped
    number = int(right_answer(env))
    answer = inner._env.rg_dataset[number]["answer"]
    assert env.step(f"<answer>{answer}</answer>")[1:3] == (1.0, True)
    env.close()
