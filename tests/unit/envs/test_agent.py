"""The endpoint of env=agent by itself: who is answered, and what is said to whatever is sent; and its arguments."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpost.config.schema import Config
from rlpost.config.trust import refuse_unnamed_code
from rlpost.envs import registry
from rlpost.envs.agent.conversation import Conversation, End, Reward
from rlpost.envs.agent.requests import MODEL, Form, Refused, parsed, read, reward_of
from rlpost.envs.agent.server import Server, server
from rlpost.envs.asking import Answer, Request
from rlpost.envs.base import Finite
from rlpost.errors import ConfigError

GOOD = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
ANSWER = Answer("hi", (1, 2), (3, 4), (-0.5, -0.25), ("h", "i"))


@pytest.fixture(scope="module")
def endpoint() -> Server:
    return server(network=False)


@pytest.fixture
def conversation() -> Conversation:
    return Conversation()


@pytest.fixture
def token(endpoint: Server, conversation: Conversation) -> Iterator[str]:
    """Of a conversation in which everything is answered with ANSWER."""
    token = endpoint.open(conversation)

    def answer() -> None:
        while isinstance(conversation.hear(), Request):
            conversation.reply(ANSWER)

    thread = threading.Thread(target=answer)
    thread.start()
    yield token
    conversation.end(End())
    thread.join(5)
    endpoint.close(token)


def send(endpoint: Server, token: str, body: Any, path: str = "/chat/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return httpx.post(endpoint.base_url + path, content=content, headers=headers, timeout=20)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-should-retry"] == "false"
    return error


def test_a_good_request_is_answered(endpoint: Server, token: str) -> None:
    response = send(endpoint, token, GOOD)
    assert response.status_code == 200
    (choice,) = response.json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert response.json()["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


@pytest.mark.parametrize("path", ["/chat/completions", "/reward"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer rlpost-guess", "Basic {token}", "{token}"])
def test_nobody_else_is_answered(endpoint: Server, token: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.format(token=token)}
    response = httpx.post(endpoint.base_url + path, json=GOOD, headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert httpx.get(endpoint.base_url + "/models", headers=headers).status_code == 401


def test_a_token_ends_with_its_episode(endpoint: Server, conversation: Conversation, token: str) -> None:
    assert send(endpoint, token, GOOD).status_code == 200
    endpoint.close(token)
    assert send(endpoint, token, GOOD).status_code == 401


def test_a_request_that_waits_when_the_episode_ends_is_told(
    endpoint: Server, conversation: Conversation
) -> None:
    token = endpoint.open(conversation)
    threading.Timer(0.3, conversation.close).start()
    response = send(endpoint, token, GOOD)
    assert response.status_code == 401
    assert error_of(response)["code"] == "episode_over"
    assert send(endpoint, token, GOOD).status_code == 401, "so is one that comes later"
    endpoint.close(token)


def test_it_listens_on_the_loopback_alone(endpoint: Server) -> None:
    assert endpoint.base_url.startswith("http://127.0.0.1:")
    assert server(network=False) is endpoint, "one a process"


def test_models_are_listed(endpoint: Server, token: str) -> None:
    response = httpx.get(endpoint.base_url + "/models", headers={"Authorization": f"Bearer {token}"})
    assert [model["id"] for model in response.json()["data"]] == [MODEL]


def test_a_reward_is_posted_once(endpoint: Server, conversation: Conversation, token: str) -> None:
    assert send(endpoint, token, {"reward": 1, "success": True}, "/reward").status_code == 200
    assert conversation.posted == Reward(1.0, True)
    assert send(endpoint, token, {"reward": 2}, "/reward").status_code == 400
    assert conversation.posted == Reward(1.0, True)


BAD = [
    (b"", 400, None),
    (b"\xff\xfe", 400, None),
    (b"[" * 100_000, 400, None),
    (b"[]", 400, None),
    (b'{"model": NaN}', 400, None),
    ({**GOOD, "model": "gpt-4o"}, 404, "model"),
    ({"model": MODEL}, 400, "messages"),
    ({**GOOD, "messages": []}, 400, "messages"),
    ({**GOOD, "messages": [{"role": "developer", "content": "x"}]}, 400, "messages"),
    ({**GOOD, "messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages"),
    (
        {**GOOD, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages",
    ),
    ({**GOOD, "messages": [*GOOD["messages"], {"role": "assistant", "content": "I"}]}, 400, "messages"),
    ({**GOOD, "max_tokens": True}, 400, "max_tokens"),
    ({**GOOD, "max_tokens": 0}, 400, "max_tokens"),
    ({**GOOD, "temperature": 10**400}, 400, "temperature"),
    ({**GOOD, "temperature": "1"}, 400, "temperature"),
    ({**GOOD, "stream": 1}, 400, "stream"),
    ({**GOOD, "stream_options": {"x": 1}}, 400, "stream_options"),
    ({**GOOD, "tools": [{"type": "function"}]}, 400, "tools"),
    ({**GOOD, "min_p": 0.1}, 400, "min_p"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[str(each[0])[:60] for each in BAD])
def test_a_bad_body_is_refused_by_its_field(
    endpoint: Server, token: str, body: Any, status: int, param: str | None
) -> None:
    response = send(endpoint, token, body)
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_no_such_path_and_too_much_are_told_in_the_same_shape(endpoint: Server, token: str) -> None:
    assert error_of(httpx.get(endpoint.base_url + "/embeddings"))["message"].startswith("Not Found")
    assert httpx.get(endpoint.base_url + "/chat/completions").status_code == 405
    response = send(endpoint, token, b" " * (33 * 2**20))
    assert response.status_code == 413
    error_of(response)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(
    scalars, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool"]) | anything,
            "content": st.text(st.characters()) | anything,
            "tool_calls": anything,
            "name": st.text() | anything,
        },
    )
    | anything,
    max_size=3,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just(MODEL) | anything,
        "messages": st.just(GOOD["messages"]) | messages | anything,
        "tools": st.lists(st.just({"type": "function", "function": {"name": "f"}}) | anything) | anything,
        **dict.fromkeys(
            (
                *("n", "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "temperature"),
                *(
                    "top_p",
                    "max_tokens",
                    "max_completion_tokens",
                    "logit_bias",
                    "response_format",
                    "tool_choice",
                ),
            ),
            anything,
        ),
    },
)


@given(bodies)
@settings(max_examples=400)
def test_any_body_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        request, form = read(body)
    except Refused as refused:
        json.dumps([refused.refusal.message, refused.refusal.param])
        return
    assert isinstance(form, Form)
    assert body["model"] == MODEL
    for message in request.messages:
        assert isinstance(message["content"], str)
        message["content"].encode()


@given(
    st.binary(max_size=40) | bodies.map(lambda body: json.dumps(body).encode()),
    st.sampled_from(["/chat/completions", "/reward"]),
)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_an_error_of_the_server(endpoint: Server, token: str, body: bytes, path: str) -> None:
    response = send(endpoint, token, body, path)
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)


@given(anything)
def test_any_reward_is_a_number_or_refused(said: Any) -> None:
    try:
        reward, _ = reward_of({"reward": said})
    except Refused:
        return
    assert isinstance(reward, float)
    assert reward == said


def test_a_body_is_an_object() -> None:
    assert parsed(b'{"a": 1}') == {"a": 1}


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request, _ = read({**GOOD, "messages": [{"role": "user", "content": parts}]})
    assert request.messages == ({"role": "user", "content": "ab"},)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"task {i}"}) + "\n" for i in range(20)))
    return path


ARGUMENTS = [
    ({}, "give one of agent= and command="),
    ({"agent": "tests.agent_programs:one_call", "command": ["sh"]}, "give one of"),
    ({"agent": "one_call"}, "names no function"),
    ({"agent": "no_such_module:agent"}, "cannot be imported"),
    ({"agent": "tests.agent_programs:score"}, "cannot be called"),
    ({"agent": "subprocess:run"}, "standard library"),
    ({"command": "python agent.py"}, "no list of words"),
    ({"command": []}, "no list of words"),
    ({"command": ["no-such-program"]}, "there is no program 'no-such-program' to run, seen from /"),
    ({"command": ["./agent.py"]}, "there is no program './agent.py' to run"),
    ({"command": ["sh"], "max_calls": 0}, "no count"),
    ({"command": ["sh"], "network": "yes"}, "no truth value"),
    ({"command": ["sh"], "expert": "answer"}, "cannot be shown"),
    ({"command": ["sh"], "colour": "red"}, "unknown argument colour"),
]


@pytest.mark.parametrize(("args", "reason"), ARGUMENTS, ids=[each[1] for each in ARGUMENTS])
def test_bad_arguments_are_refused(tasks: Path, args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        registry.make("agent", path=str(tasks), **args)


def test_tasks_are_needed() -> None:
    with pytest.raises(ValueError, match="path= is missing"):
        registry.make("agent", command=["sh"])


def test_tasks_are_dealt_as_rows_of_a_data_set(tasks: Path) -> None:
    env = registry.make("agent", path=str(tasks), command=["sh"])
    assert isinstance(env, Finite)
    observations = {
        split: {env.reset(seed=seed, options={"split": split})[0] for seed in range(200)}
        for split in ("train", "eval")
    }
    assert {split: len(found) for split, found in observations.items()} == {
        split: env.instances("default", split) for split in ("train", "eval")
    }
    assert not observations["train"] & observations["eval"]
    env.close()


def test_a_record_names_its_code(tasks: Path) -> None:
    args = {"command": ["python", "x.py"], "path": "tasks.jsonl", "score": "exact"}
    assert registry.own_code("agent", args) == {"command": "python x.py"}
    named = {"agent": "mine:agent", "score": "mine:score", "path": "a:b"}
    assert registry.own_code("agent", named) == {"agent": "mine:agent", "score": "mine:score"}


def test_a_record_with_a_command_is_not_resumed_unnamed(tmp_path: Path) -> None:
    config = Config(env="agent", env_args={"command": ["python", "x.py"], "path": "tasks.jsonl"})
    with pytest.raises(ConfigError, match=r"env_args.command=python x.py.*\n.*a command"):
        refuse_unnamed_code(config, [], tmp_path)
    refuse_unnamed_code(config, ["env_args.command"], tmp_path)
