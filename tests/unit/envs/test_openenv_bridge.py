"""The bridge to OpenEnv, against a small server that speaks its protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from rlpost.envs import registry
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.messages import Message
from rlpost.envs.openenv.actions import action_field, result_of, said_fields, text_of
from rlpost.envs.openenv.connection import address
from rlpost.envs.openenv.settings import Settings

GUESS = {"properties": {"metadata": {}, "guess": {"type": "string"}}, "required": ["guess"]}
TOOLS = {"properties": {"type": {}, "tool_name": {}, "arguments": {}}, "required": ["tool_name"]}


@pytest.mark.parametrize(
    "url", ["foo", "ftp://x:1", "http://", "http://x:99999", "http://me@x:1", "http://x:1?a=b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UnknownEnvironment, match="HOST:PORT"):
        address(url)


def test_addresses() -> None:
    assert address("https://x.org/space/").websocket == "wss://x.org/space/ws"
    assert address("http://127.0.0.1:8000").local


@pytest.mark.parametrize(
    "args",
    [
        {"nope": 1},
        {"reset": {"seed": 1}},
        {"reset": 3},
        {"instance": "x"},
        {"max_turns": 0},
        {"max_turns": True},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"observation_field": []},
        {"action_field": ""},
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"openenv: .*{next(iter(args))}"):
        Settings.checked(args)


def test_the_only_needed_field_is_the_action() -> None:
    two = {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    assert action_field(GUESS, Settings()) == "guess"
    assert action_field(two, Settings(action={"b": 1})) == "a"
    with pytest.raises(Refused, match="needs the fields a, b"):
        action_field(two, Settings())
    with pytest.raises(Refused, match="no field 'c'"):
        action_field(two, Settings(action_field="c"))


def test_the_only_text_is_what_is_said() -> None:
    assert said_fields({"x": 3, "prompt": "hi", "other": "", "metadata": {}}, Settings()) == ("prompt",)
    with pytest.raises(Refused, match="the texts a, b"):
        said_fields({"a": "1", "b": "2"}, Settings())
    with pytest.raises(Refused, match="no text"):
        said_fields({"x": 3}, Settings())


def test_fields_are_said_as_text() -> None:
    fields = {"a": "one", "b": None, "c": [{"content": "x"}, {"content": "y"}], "d": [1, 2]}
    assert text_of(fields, ("a", "b", "c", "d")) == "one\n\nx\ny\n\n[1, 2]"


def test_a_tools_result_or_its_error_is_said() -> None:
    assert result_of({"result": {"data": {"n": 1}}}) == Message.of("tool", '{"n": 1}')
    assert result_of({"result": {"data": None, "content": [{"text": "bad"}]}}) == Message.of("tool", "bad")
    assert result_of({"error": {"message": "no such tool"}, "result": None}) == Message.of(
        "tool", "no such tool"
    )


def test_a_server_that_is_away_is_refused() -> None:
    with pytest.raises(UnknownEnvironment, match="there is no answer"):
        registry.make("openenv:http://127.0.0.1:9", timeout_s=2)


def test_a_server_is_named_again_to_resume() -> None:
    name = "openenv:http://x:1"
    assert registry.is_server(name)
    assert registry.own_code(name, {}) == {"env": name}


class Server:
    """Guess the seed's last digit; or call the tool `echo`. Misbehaves as it is told."""

    def __init__(self, schema: dict[str, Any]) -> None:
        from websockets.sync.server import serve

        self.schema, self.silent, self.garbage = schema, False, False
        self._serving = serve(self._session, "127.0.0.1", 0, process_request=self._http)
        self.url = f"http://127.0.0.1:{self._serving.socket.getsockname()[1]}"
        threading.Thread(target=self._serving.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._serving.shutdown()

    def _http(self, connection: Any, request: Any) -> Any:
        if request.path == "/schema":
            return connection.respond(HTTPStatus.OK, json.dumps({"action": self.schema}))
        return None

    def _session(self, socket: Any) -> None:
        seed = 0
        for line in socket:
            if self.silent:
                continue
            if self.garbage:
                socket.send("{")
                continue
            asked = json.loads(line)
            if asked["type"] == "close":
                return
            seed = asked["data"].get("seed", seed)
            socket.send(json.dumps(self._answer(asked, seed)))

    def _answer(self, asked: dict[str, Any], seed: int) -> dict[str, Any]:
        data = asked["data"]
        if asked["type"] == "reset":
            return self._observed({"prompt": f"Which digit ends {seed}?"}, 0.0, False)
        if data.get("type") == "list_tools":
            return self._observed(
                {"tools": [{"name": "echo", "input_schema": {"type": "object"}}]}, None, False
            )
        if "tool_name" in data:
            return self._observed({"result": {"data": data["arguments"]["x"]}}, 0.25, False)
        if not data["guess"].isdigit():
            fault = {
                "message": "Invalid message",
                "code": "VALIDATION_ERROR",
                "errors": [{"loc": ["guess"], "msg": "no"}],
            }
            return {"type": "error", "data": fault}
        if data["guess"] == "99":
            return {"type": "error", "data": {"message": "crash", "code": "EXECUTION_ERROR"}}
        right = data["guess"] == str(seed % 10)
        return self._observed({"prompt": "over"}, float(right), True)

    @staticmethod
    def _observed(fields: dict[str, Any], reward: float | None, done: bool) -> dict[str, Any]:
        return {"type": "observation", "data": {"observation": fields, "reward": reward, "done": done}}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    pytest.importorskip("websockets", reason="the package websockets is not installed here")
    started = Server(getattr(request, "param", GUESS))
    yield started
    started.close()


def made(server: Server, **args: Any) -> Any:
    return registry.make(f"openenv:{server.url}", **args)


def test_text_becomes_an_action_and_the_reward_comes_back(server: Server) -> None:
    env = made(server)
    said, info = env.reset(seed=1, options={"split": "train"})
    assert env.reset(seed=1, options={"split": "train"}) == (said, info)
    told, reward, terminated, _, found = env.step(said.removesuffix("?")[-1])
    assert (told, reward, terminated, found["outcome"]) == ("over", 1.0, True, "SUCCESS")
    env.close()


def test_an_action_that_the_server_refuses_is_told_to_the_model(server: Server) -> None:
    env = made(server, max_turns=2)
    env.reset(seed=1)
    said, _, terminated, truncated, info = env.step("seven")
    assert (said, terminated, truncated, info["outcome"]) == (
        "Invalid message (guess: no)",
        False,
        False,
        "INVALID_ACTION",
    )
    assert env.step("eight")[2:4] == (False, True)
    env.close()


def test_a_server_that_fails_breaks_the_episode_and_the_next_goes_on(server: Server) -> None:
    env = made(server, timeout_s=0.5)
    env.reset(seed=1)
    with pytest.raises(RuntimeError, match="EXECUTION_ERROR: crash"):
        env.step("99")
    env.reset(seed=1)
    server.silent = True
    with pytest.raises(RuntimeError, match=r"no answer to step within env_args.timeout_s=0.5"):
        env.step("1")
    server.silent = False
    env.reset(seed=2)
    server.garbage = True
    with pytest.raises(RuntimeError, match="no JSON"):
        env.step("1")
    env.close()


def test_instances_may_be_named_by_their_seed(server: Server) -> None:
    env = made(server, instance="seed")
    assert env.reset(seed=1)[1]["instance"].startswith("seed-")
    env.close()


@pytest.mark.parametrize("server", [TOOLS], indirect=True)
def test_a_servers_tools_are_declared_and_called(server: Server) -> None:
    env = made(server)
    assert env.reset(seed=1)[0] == "Use the tools."
    assert env.unwrapped.tools[0]["function"]["name"] == "echo"
    call = '<tool_call>{"name": "echo", "arguments": {"x": "hi"}}</tool_call>'
    said, reward, terminated, _, _ = env.step(f"{call}{call}<tool_call>{{")
    assert [message.text for message in said][:2] == ["hi", "hi"]
    assert (len(said), reward, terminated) == (3, 0.5, False)
    assert env.step("done")[2:5:2] == (True, {"outcome": "NO_CALL", "success": False})
    env.close()
