"""Agents that ask over HTTP by OpenAI's own client, with a scripted engine: exact tokens, samples, endings."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlpost.envs import registry
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.scripted import LOGPROB, ScriptedEngine
from rlpost.seeds import derive
from rlpost.types import Ending, EpisodeSpec, Finish, Trajectory
from tests import agent_programs
from tests.unit.chat_templates import QWEN3, chatml

SAMPLING = Sampling(temperature=1.0, max_new_tokens=200)
Script = Callable[[str, int], str]


@pytest.fixture(scope="module")
def chat(random_model: Path) -> Chat:
    return Chat.load(random_model)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    agent_programs.SEEN.clear()
    agent_programs.MORE.clear()
    agent_programs.GO_ON.clear()
    yield
    agent_programs.GO_ON.set()  # nobody is left waiting


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"task {i}", "n": i}) + "\n" for i in range(20)))
    return path


def specs(count: int) -> list[EpisodeSpec]:
    return [EpisodeSpec("default", "train", 3, i, 0, 7, derive("dice", i)) for i in range(count)]


def numbered(text: str, seed: int) -> str:
    return f"answer {seed % 1000}"


def play(
    chat: Chat, tasks: Path, agent: str | None, count: int = 1, script: Script = numbered, **more: Any
) -> list[Trajectory]:
    """Episodes of an agent of tests/agent_programs.py."""
    sampling = more.pop("sampling", SAMPLING)
    engine = ScriptedEngine(script, chat, more.pop("max_model_len", 2048))
    timeout_s, max_live = more.pop("env_timeout_s", 20.0), more.pop("max_live", 2)
    args = {"path": str(tasks), **({"agent": f"tests.agent_programs:{agent}"} if agent else {}), **more}
    collector = Collector(engine, "agent", lambda: registry.make("agent", **args), chat, max_live, timeout_s)
    played = collector.collect(specs(count), sampling, 5)
    assert collector.close() == []
    return played


def user(text: str) -> str:
    return f"<|user|>{text}<|end|>"


def told(answer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """What a completion says of its prompt, its tokens and their log-probs."""
    choice = answer.choices[0]
    logprobs = tuple(each.logprob for each in choice.logprobs.content)
    return tuple(choice.prompt_token_ids), tuple(choice.token_ids), logprobs


def test_an_episode_of_one_call_is_what_an_environment_of_one_turn_would_be(chat: Chat, tasks: Path) -> None:
    played = play(chat, tasks, "one_call", count=5)
    assert [t.episode for t in played] == list(range(5))
    for t in played:
        (turn,) = t.turns
        assert (t.ending, t.error, t.success) == (Ending.TERMINATED, None, False)
        assert turn.context_ids == chat.prompt_ids(turn.observation)
        assert turn.answer == numbered("", derive(t.seed, 0))
        assert turn.answer_ids == chat.answer_ids(turn.answer)
        assert (turn.reward, turn.outcome, turn.finish) == (0.5, "PARTIAL", Finish.STOP)
    seen = {told(answer) for answer in agent_programs.SEEN}
    assert seen == {(t.turns[0].context_ids, t.turns[0].answer_ids, t.turns[0].logprobs) for t in played}
    assert len({t.instance for t in played}) == 1, "a group shares its task"


def test_what_is_appended_is_one_sample_with_the_tokens_as_sampled(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "appends")
    assert len(played.samples) == 1
    assert [turn.opens_sample for turn in played.turns] == [True, False, False]
    assert [turn.reward for turn in played.turns] == [0.0, 0.0, 2.0]
    assert (played.success, played.turns[-1].outcome) == (True, "CORRECT")
    first, second, third = played.turns
    assert first.context_ids == chat.prompt_ids(first.observation)
    assert second.context_ids == chat.feedback_ids("and then?", Finish.STOP)
    assert third.context_ids == chat.feedback_ids("and <|end|> in the end?", Finish.STOP)
    whole = tuple(played.token_ids)
    prompts = [told(answer)[0] for answer in agent_programs.SEEN]
    assert [whole[: len(prompt)] for prompt in prompts] == prompts
    assert [turn.answer for turn in played.turns] == [numbered("", derive(played.seed, i)) for i in range(3)]


def test_an_answer_cut_short_is_closed_in_the_history(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "appends", sampling=Sampling(1.0, 3))
    assert [turn.finish for turn in played.turns] == [Finish.LENGTH] * 3
    assert [answer.choices[0].finish_reason for answer in agent_programs.SEEN] == ["length"] * 3
    assert played.turns[1].context_ids == chat.feedback_ids("and then?", Finish.LENGTH)
    assert len(played.samples) == 1


def test_answers_are_spliced_in_as_sampled_where_their_text_would_encode_otherwise(
    chat: Chat, tasks: Path
) -> None:
    """The engine samples a control token inside of an answer, which its text does not show."""

    class Engine(ScriptedEngine):
        def step(self) -> Any:
            done = super().step()
            return [
                (key, type(c)((c.token_ids[0], 0, *c.token_ids[1:]), (*c.logprobs, LOGPROB), c.finish))
                for key, c in done
            ]

    engine = Engine(numbered, chat, 2048)
    args = {"path": str(tasks), "agent": "tests.agent_programs:appends"}
    collector = Collector(engine, "agent", lambda: registry.make("agent", **args), chat, 1, 20.0)
    (played,) = collector.collect(specs(1), SAMPLING, 0)
    assert len(played.samples) == 1
    prompt = told(agent_programs.SEEN[2])[0]
    assert prompt.count(0) == 2, "both earlier answers, with the token that their text does not show"
    assert tuple(played.token_ids[: len(prompt)]) == prompt


def test_a_rewritten_history_is_a_sample_of_its_own(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "rewrites")
    task = next(turn.observation for turn in played.turns)
    texts = [
        _with_controls(chat, sum(((*t.context_ids, *t.answer_ids) for t in s), ())) for s in played.samples
    ]
    said = [answer.choices[0].message.content for answer in agent_programs.SEEN]
    a = "<|assistant|>"
    assert texts == [
        user(task) + f"{a}{said[0]}<|end|>" + user("go on") + f"{a}{said[1]}<|end|>",
        user(f"in short: {task}") + f"{a}{said[2]}<|end|>" + user("more") + f"{a}{said[3]}<|end|>",
        user(task) + f"{a}{said[0]}<|end|>" + user("or else") + f"{a}{said[4]}<|end|>",
    ]
    assert [[turn.opens_sample for turn in s] for s in played.samples] == [
        [True, False],
        [True, False],
        [True],
    ]
    assert [turn.reward for turn in played.turns] == [0.0] * 4 + [1.0]
    assert played.total_reward == 1.0
    branch = played.samples[2][0].context_ids
    first = played.samples[0]
    begun = (*first[0].context_ids, *first[0].answer_ids)
    assert branch[: len(begun)] == begun, "a branch has the tokens of what it branches from"
    seen = [told(answer) for answer in agent_programs.SEEN]
    rows = [tuple(sum(((*t.context_ids, *t.answer_ids) for t in s), ())) for s in played.samples]
    for prompt, ids, _ in seen:
        assert any(row[: len(prompt) + len(ids)] == (*prompt, *ids) for row in rows)


def _with_controls(chat: Chat, ids: Sequence[int]) -> str:
    return "".join(chat.token_texts(ids))


def test_roles_and_tools_are_the_templates_own(tasks: Path) -> None:
    """What spells a control token is text; a result that is appended goes on with the sample."""
    chat = Chat(chatml(QWEN3))
    (played,) = play(chat, tasks, "uses_tools")
    assert (played.error, [len(s) for s in played.samples]) == (None, [3])
    (first, second, third), im_end = played.turns, chat.eos_id
    assert first.context_ids.count(im_end) == 2, "of system and user alone"
    assert '"weather"' in _with_controls(chat, first.context_ids)
    told = "\n<|im_start|>user\n<tool_response>\n21 <|im_end|>\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert _with_controls(chat, second.context_ids) == told
    assert second.context_ids.count(im_end) == 1
    assert _with_controls(chat, third.context_ids) == (
        "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_whose_thinking_the_template_drops_begins_a_new_sample(tasks: Path) -> None:
    chat = Chat(chatml(QWEN3))
    (played,) = play(chat, tasks, "appends", script=lambda text, seed: f"<think>hm</think>{seed % 100}")
    assert [len(s) for s in played.samples] == [1, 1, 1]
    assert "hm" not in _with_controls(chat, played.turns[2].context_ids)
    assert [t.answer for t in played.turns] == [
        f"<think>hm</think>{derive(played.seed, i) % 100}" for i in range(3)
    ]


def test_a_role_that_the_template_confuses_is_refused(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "uses_tools")
    assert played.ending is Ending.ENV_ERROR
    assert "it writes the role system as it writes user" in str(played.error)


def test_calls_side_by_side_are_branches(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "asynchronous")
    assert [len(sample) for sample in played.samples] == [1, 1, 1]
    assert sorted(turn.observation[-2:] for turn in played.turns) == [" 0", " 1", " 2"]
    assert {told(answer)[:2] for answer in agent_programs.SEEN} == {
        (turn.context_ids, turn.answer_ids) for turn in played.turns
    }
    assert len({turn.answer for turn in played.turns}) == 3, "each call has dice of its own"
    assert played.total_reward == 3.0


def test_a_stream_says_the_same(chat: Chat, tasks: Path) -> None:
    (whole,), (streamed,) = play(chat, tasks, "one_call"), play(chat, tasks, "streams")
    assert streamed.token_ids == whole.token_ids
    answer, events = agent_programs.SEEN
    pieces = [event for event in events if event.choices]
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == answer.choices[0].message.content
    assert told(pieces[0]) == told(answer)
    assert [p.choices[0].finish_reason for p in pieces] == [None, "stop"]
    assert events[-1].usage == answer.usage


REWARDS = [
    ({"agent": "posts"}, 0.25, True),
    ({"agent": "one_call", "success_at": 0.5}, 0.5, True),
    ({"agent": "says", "score": "tests.agent_programs:score"}, 0.125, False),
    ({"agent": "no_reward", "score": "tests.agent_programs:score"}, 0.125, False),
]


@pytest.mark.parametrize(("args", "reward", "success"), REWARDS)
def test_rewards(chat: Chat, tasks: Path, args: dict[str, Any], reward: float, success: bool) -> None:
    (played,) = play(chat, tasks, **args)
    assert (played.total_reward, played.success, played.error) == (reward, success, None)


def test_a_score_is_of_what_the_agent_returned_else_of_the_last_answer(chat: Chat, tasks: Path) -> None:
    play(chat, tasks, "says", score="tests.agent_programs:score")
    (played,) = play(chat, tasks, "no_reward", score="tests.agent_programs:score")
    scored = [each for each in agent_programs.SEEN if isinstance(each, tuple)]
    assert [answer for answer, _ in scored] == ["the answer is 42", played.turns[-1].answer]


FAILURES = [
    ("raises", {}, "LookupError: no such page (agent_programs.py"),
    ("never_asks", {}, "ended without a call of the model"),
    ("no_reward", {}, "ended without a reward"),
    ("says", {}, "ended without a reward"),
    ("posts_and_returns", {}, "two rewards"),
    ("one_call", {"score": "tests.agent_programs:score"}, "two rewards"),
]


@pytest.mark.parametrize(("agent", "more", "cause"), FAILURES)
def test_an_agent_that_fails_ends_its_episode_by_name(
    chat: Chat, tasks: Path, agent: str, more: dict[str, Any], cause: str
) -> None:
    (played,) = play(chat, tasks, agent, **more)
    assert played.ending is Ending.ENV_ERROR
    assert played.error is not None
    assert cause in played.error
    assert played.total_reward == 0.0


def test_an_agent_that_hangs_times_out_and_ends(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "waits", env_timeout_s=0.5)
    assert (played.ending, len(played.turns)) == (Ending.ENV_TIMEOUT, 1)
    assert played.error == "the agent's next call or end took longer than rollout.env_timeout_s=0.5"
    deadline = time.monotonic() + 10
    while any(t.name == "agent" and t.is_alive() for t in threading.enumerate()):
        assert time.monotonic() < deadline, "the agent's thread lives on"
        time.sleep(0.05)


def test_an_agent_that_comes_late_is_answered_no_more(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "forgets_its_time", env_timeout_s=0.3)
    assert (played.ending, played.turns) == (Ending.ENV_TIMEOUT, ())
    agent_programs.GO_ON.set()
    deadline = time.monotonic() + 10
    while not agent_programs.SEEN and time.monotonic() < deadline:
        time.sleep(0.05)
        if not any(t.name == "agent" for t in threading.enumerate()):
            break  # the exception of its end reached it first
    assert all(error.status_code == 401 for error in agent_programs.SEEN)


def test_an_agent_whose_batch_is_given_up_is_ended(chat: Chat, tasks: Path) -> None:
    args = {"path": str(tasks), "agent": "tests.agent_programs:calls_without_end"}
    engine = ScriptedEngine(numbered, chat, 2048)
    collector = Collector(engine, "agent", lambda: registry.make("agent", **args), chat, 2, 20.0)
    stream = collector.stream(specs(1), SAMPLING, 0)
    for _ in range(3):
        assert next(stream) == []
    stream.close()
    deadline = time.monotonic() + 10
    while any(t.name == "agent" and t.is_alive() for t in threading.enumerate()):
        assert time.monotonic() < deadline, "the agent's thread waits for an answer"
        time.sleep(0.05)


def test_a_full_context_is_told_and_named(chat: Chat, tasks: Path) -> None:
    (gave_up,) = play(chat, tasks, "fills_the_context", max_model_len=100)
    assert (gave_up.ending, gave_up.error, gave_up.total_reward) == (Ending.CONTEXT_FULL, None, 0.0)
    assert gave_up.turns
    (noticed,) = play(chat, tasks, "notices_the_context", max_model_len=100)
    assert (noticed.ending, noticed.total_reward) == (Ending.TERMINATED, 0.75)
    error = agent_programs.SEEN[-1]
    assert (error.status_code, error.code, error.param) == (400, "context_length_exceeded", "messages")
    (nothing,) = play(chat, tasks, "fills_the_context", max_model_len=5)
    assert (nothing.ending, nothing.turns) == (Ending.CONTEXT_FULL, ())


def test_calls_are_counted(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "calls_without_end", max_calls=3)
    assert (played.ending, len(played.turns), played.error) == (Ending.TRUNCATED, 3, None)
    assert [len(sample) for sample in played.samples] == [1, 1, 1]


REFUSED = [
    ({"temperature": 0.5}, "temperature"),
    ({"max_tokens": 201}, "max_tokens"),
    ({"max_completion_tokens": 10**6}, "max_tokens"),
    ({"seed": 1}, "seed"),
    ({"n": 2}, "n"),
    ({"top_p": 0.9}, "top_p"),
    ({"stop": ["x"]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"extra_body": {"top_k": 5}}, "top_k"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=[str(each[0]) for each in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(
    chat: Chat, tasks: Path, more: dict[str, Any], param: str
) -> None:
    agent_programs.MORE.update(more)
    (played,) = play(chat, tasks, "asks_more")
    error, _ = agent_programs.SEEN
    assert (error.status_code, error.param) == (400, param)
    assert param in error.message
    assert (len(played.turns), played.total_reward) == (1, 1.0), "a refused call leaves no turn"


HONOURED = [
    {"temperature": 1},
    {"n": 1, "top_p": 1.0, "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}},
    {"user": "me", "metadata": {"a": "b"}, "store": False, "tool_choice": "none", "max_tokens": 200},
]


@pytest.mark.parametrize("more", HONOURED)
def test_what_changes_nothing_is_taken(chat: Chat, tasks: Path, more: dict[str, Any]) -> None:
    agent_programs.MORE.update(more)
    (played,) = play(chat, tasks, "asks_more")
    assert len(agent_programs.SEEN) == 1
    assert played.ending is Ending.TERMINATED


def test_the_runs_stop_strings_end_answers_and_may_be_named(chat: Chat, tasks: Path) -> None:
    agent_programs.MORE.update(stop=["##", "sw"])
    (played,) = play(chat, tasks, "asks_more", sampling=Sampling(1.0, 200, ("sw", "##")))
    (turn,) = played.turns
    assert (turn.answer, turn.finish) == ("answer"[:4], Finish.STOP_STRING)
    assert agent_programs.SEEN[0].choices[0].finish_reason == "stop"


def test_a_shorter_answer_may_be_asked_for(chat: Chat, tasks: Path) -> None:
    agent_programs.MORE.update(max_tokens=4)
    (played,) = play(chat, tasks, "asks_more")
    assert (len(played.turns[0].answer_ids), played.turns[0].finish) == (4, Finish.LENGTH)


COMMAND = """
import json, os, subprocess, sys, time
from openai import OpenAI
task = json.loads(os.environ["RLPOST_TASK"])
client = OpenAI()
client.chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=[{"role": "user", "content": task["prompt"]}])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "a").write(f"{os.getpid()} {child.pid} ")
if sys.argv[2] == "hangs":
    time.sleep(600)
if sys.argv[2] == "fails":
    print("looking for it", file=sys.stderr)
    sys.exit("no such tool")
client.post("/reward", body={"reward": task["n"] + 0.5}, cast_to=object)
"""


@pytest.mark.parametrize("way", ["ends", "fails", "hangs"])
def test_a_command_plays_and_leaves_nothing(chat: Chat, tasks: Path, tmp_path: Path, way: str) -> None:
    program, pids = tmp_path / "my_agent.py", tmp_path / "pids"
    program.write_text(COMMAND)
    command = [sys.executable, str(program), str(pids), way]
    (played,) = play(chat, tasks, None, command=command, env_timeout_s=15.0 if way == "hangs" else 30.0)
    expected = {"ends": Ending.TERMINATED, "fails": Ending.ENV_ERROR, "hangs": Ending.ENV_TIMEOUT}
    assert played.ending is expected[way]
    assert len(played.turns) == 1
    if way == "ends":
        assert played.total_reward % 1 == 0.5
    if way == "fails":
        assert played.error is not None
        assert played.error.endswith("ended with status 1: no such tool; before that: looking for it")
    started = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and not _is_dead(pid) for pid in started):
        assert time.monotonic() < deadline, "a process lives on"
        time.sleep(0.05)


def _is_dead(pid: int) -> bool:
    """Whether it only waits to be reaped, here by whoever took a dead agent's children."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_command_that_is_none_is_told(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, None, command=["/no/such/program"])
    assert played.ending is Ending.ENV_ERROR
    assert "there is no program '/no/such/program' to run" in str(played.error)


def test_an_environment_is_used_again(chat: Chat, tasks: Path) -> None:
    played = play(chat, tasks, "appends", count=6, max_live=2)
    assert [t.ending for t in played] == [Ending.TERMINATED] * 6
    alone = [play(chat, tasks, "appends", count=6, max_live=1)[i] for i in range(6)]
    assert [t.token_ids for t in played] == [t.token_ids for t in alone]


@pytest.mark.skipif(os.environ.get("CI") == "no network", reason="needs an address of its own")
def test_the_network_address_is_not_the_loopback(chat: Chat, tasks: Path) -> None:
    (played,) = play(chat, tasks, "one_call", network=True)
    assert played.ending is Ending.TERMINATED
