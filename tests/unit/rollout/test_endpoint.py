"""A model behind an OpenAI-compatible server plays the same instances; what it refuses is told, and ends the run."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost import run
from rlpost.algorithms.credit import assign_credit
from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.base import PlainVariant
from rlpost.envs.messages import Message
from rlpost.errors import ConfigError, LearnerError, RolloutError
from rlpost.record import failures, jsonl, metrics
from rlpost.report import main as report_main
from rlpost.rollout.endpoint import client as client_module
from rlpost.rollout.endpoint.client import EndpointClient, read_answer
from rlpost.rollout.endpoint.player import EndpointPlayer
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.specs import Instance, evaluation_specs
from rlpost.seeds import derive
from rlpost.types import Ending, Finish, Trajectory
from rlpost.verbs import compare_runs
from tests.unit.rollout.endpoint_server import Reply, Request, Served, refusal, said, serving

SAMPLING = Sampling(0.0, 104)
N = 6


@pytest.fixture
def cfg() -> Config:
    cfg = Config(env_args={"verify_iter": 3}, eval_variants=["faces_10"])
    cfg.eval.endpoint_model = "m"
    cfg.rollout.timeout_s = 20.0
    return cfg


def play(cfg: Config, served: Served | str, sampling: Sampling = SAMPLING, n: int = N) -> list[Trajectory]:
    url = served if isinstance(served, str) else served.url
    asked = EndpointClient(url, str(cfg.eval.endpoint_model), cfg.rollout.timeout_s)
    player = EndpointPlayer(cfg, asked)
    try:
        played = player.collect(
            evaluation_specs(cfg, cfg.eval_variants[0], map(Instance, range(n))), sampling
        )
        assert player.close() == []
        return played
    finally:
        asked.close()


def right_answers(cfg: Config, n: int = N) -> dict[str, str]:
    """The expert's answer to the first observation of each evaluated instance."""
    env = registry.make(cfg.env, **cfg.env_args)
    answers = {}
    for spec in evaluation_specs(cfg, cfg.eval_variants[0], map(Instance, range(n))):
        observation, _ = env.reset(seed=spec.env_seed, options={"variant": spec.variant, "split": spec.split})
        ((_, answers[observation], _),) = env.unwrapped.expert(False, random.Random(0))  # type: ignore[attr-defined]
    return answers


def solver(cfg: Config, n: int = N) -> Callable[[Request], Reply]:
    answers = right_answers(cfg, n)
    return lambda request: said(
        answers[next(m["content"] for m in request["messages"] if m["role"] == "user")]
    )


def test_right_answers_solve_every_instance(cfg: Config) -> None:
    with serving(solver(cfg)) as served:
        played = play(cfg, served)
    assert [t.success for t in played] == [True] * N
    assert [t.ending for t in played] == [Ending.TERMINATED] * N
    assert [t.group for t in played] == list(range(N))
    assert {t.player for t in played} == {"m"}
    found = metrics.evaluation(played)
    assert found["success"] == 1.0
    assert found["answer_tokens"] == 7.0  # as the server says, which is no count of ours
    request = served.requests[0]
    assert {k: request[k] for k in ("model", "temperature", "max_tokens")} == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 104,
    }
    assert "stop" not in request
    assert {r["seed"] for r in served.requests} == {derive(t.seed, 0) for t in played}


def test_wrong_answers_see_every_feedback_and_solve_nothing(cfg: Config) -> None:
    cfg.rollout.system_prompt = "Be brief."
    with serving(lambda request: said("no idea", tokens=None)) as served:
        played = play(cfg, served, Sampling(0.7, 5, ("}",)))
    assert [t.success for t in played] == [False] * N
    assert [t.ending for t in played] == [Ending.TRUNCATED] * N
    assert [len(t.turns) for t in played] == [3] * N
    assert metrics.evaluation(played)["answer_tokens"] is None  # nobody counted, nothing is made up
    assert Counter(len(r["messages"]) for r in served.requests) == {2: N, 4: N, 6: N}
    last = next(r for r in served.requests if len(r["messages"]) == 6)
    assert [m["role"] for m in last["messages"]] == ["system", "user", *["assistant", "user"] * 2]
    assert last["messages"][2]["content"] == "no idea"
    episode = next(t for t in played if t.turns[0].observation == last["messages"][1]["content"])
    assert [t.observation for t in episode.turns] == [m["content"] for m in last["messages"][1::2]]
    assert (last["temperature"], last["max_tokens"], last["stop"]) == (0.7, 5, ["}"])


def test_no_more_episodes_are_live_than_allowed(cfg: Config) -> None:
    cfg.rollout.max_num_seqs = 2
    live, most, lock = [0], [0], threading.Lock()

    def slow(request: Request) -> Reply:
        with lock:
            live[0] += 1
            most[0] = max(most[0], live[0])
        time.sleep(0.03)
        with lock:
            live[0] -= 1
        return said("no")

    with serving(slow) as served:
        assert len(play(cfg, served)) == N
    assert most[0] == 2


def failure(cfg: Config, answer: Callable[[Request], Reply]) -> str:
    with serving(answer) as served, pytest.raises(RolloutError) as caught:
        play(cfg, served)
    return str(caught.value)


def test_a_refused_key_is_told_and_not_shown(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    told = failure(cfg, lambda request: refusal(401, "Incorrect key sk-secret\x1b[2J"))
    assert "HTTP 401" in told
    assert "export OPENAI_API_KEY" in told
    assert "was sent" in told
    assert "sk-secret" not in told
    assert "\x1b" not in told


def test_the_key_is_the_environments(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with serving(lambda request: said("no")) as served:
        play(cfg, served)
    assert set(served.keys) == {"Bearer sk-mine"}


def test_an_unknown_model_and_a_wrong_path_are_told(cfg: Config) -> None:
    told = failure(cfg, lambda request: refusal(404, "The model `m` does not exist."))
    assert "HTTP 404" in told
    assert "does not exist" in told
    assert "mend eval.endpoint_model, or eval.endpoint" in told


def test_a_server_that_recovers_is_asked_again(cfg: Config) -> None:
    right, seen = solver(cfg), Counter[str]()

    def flaky(request: Request) -> Reply:
        seen[said_key := request["messages"][0]["content"]] += 1
        return right(request) if seen[said_key] > 1 else refusal(500, "busy")

    with serving(flaky) as served:
        played = play(cfg, served)
    assert all(t.success for t in played)
    assert set(seen.values()) == {2}


def test_a_server_that_stays_broken_ends_the_run(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRIES", 1)
    assert "HTTP 500" in failure(cfg, lambda request: refusal(500, "out of memory"))


def test_no_server_is_told(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRIES", 1)
    with serving(lambda request: said("")) as served:
        url = served.url
    with pytest.raises(RolloutError, match=r"no connection in 2 attempts \(ConnectError"):
        play(cfg, url)


def test_a_server_that_hangs_meets_the_deadline(cfg: Config) -> None:
    cfg.rollout.timeout_s = 0.5
    release = threading.Event()

    def hang(request: Request) -> Reply:
        release.wait(20)
        return said("late")

    began = time.monotonic()
    try:
        assert "no answer within rollout.timeout_s=0.5, retries included" in failure(cfg, hang)
    finally:
        release.set()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "full",
    [
        refusal(400, "too long", code="context_length_exceeded"),
        refusal(400, "This model's maximum context length is 512 tokens. However, you requested 900."),
    ],
)
def test_a_full_context_ends_its_episode_alone(cfg: Config, full: Reply) -> None:
    def answer(request: Request) -> Reply:
        return full if len(request["messages"]) > 1 else said("no")

    with serving(answer) as served:
        played = play(cfg, served)
    assert [t.ending for t in played] == [Ending.CONTEXT_FULL] * N
    assert [len(t.turns) for t in played] == [1] * N
    with serving(lambda request: full) as served:
        played = play(cfg, served)
    assert failures.counts(played)["unfit"] == N


def test_another_refused_request_ends_the_run(cfg: Config) -> None:
    told = failure(cfg, lambda request: refusal(400, "Unsupported parameter: 'max_tokens'"))
    assert "HTTP 400" in told
    assert "Unsupported parameter: 'max_tokens'" in told


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}']
)
def test_what_is_no_completion_ends_the_run(cfg: Config, body: bytes) -> None:
    assert "is no chat completion" in failure(cfg, lambda request: (200, body))


def test_the_reading_of_an_answer() -> None:
    def read(*args: Any, **more: Any) -> Any:
        return read_answer(said(*args, **more)[1])

    assert read("a").finish is Finish.STOP
    assert read("a", finish="length").finish is Finish.LENGTH
    assert read(None).text == ""
    assert read("a \ud800 b").text == "a � b"
    stopped = read("a", stop_reason="</answer>")
    assert (stopped.text, stopped.finish) == ("a</answer>", Finish.STOP_STRING)
    assert read("a", stop_reason=2).finish is Finish.STOP  # vLLM: the id of a token
    assert read("a", tokens=True).tokens is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "completion_tokens", "x"]),
                inner,
                max_size=3,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
    | st.binary()
)
def test_no_reply_is_read_as_anything_but_an_answer_or_refused(body: bytes) -> None:
    try:
        answer = read_answer(body)
    except ValueError:
        return
    answer.text.encode()
    assert answer.tokens is None or answer.tokens >= 0


class Troubled(gymnasium.Env[str, str]):
    """Raises (or hangs) at the second step; opens with what a test sets."""

    variants = (PlainVariant("faces_10", False, ""),)
    opening: Any = "say something"
    hang = False

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Text(1000)
        self.action_space = gymnasium.spaces.Text(1000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.turn, self.number = 0, seed
        return self.opening, {"instance": str(seed)}

    def step(self, action: str) -> Any:
        self.turn += 1
        if self.turn == 2 and self.hang:
            time.sleep(3)
        if self.turn == 2:
            raise RuntimeError("lost the cards")
        return "again", 0.0, False, False, {"outcome": "AGAIN", "success": False}


class Tooled(Troubled):
    tools = ({"type": "function", "function": {"name": "look", "description": "", "parameters": {}}},)


@pytest.fixture
def troubled(cfg: Config) -> Iterator[Config]:
    cfg.env, cfg.env_args = f"{__name__}:Troubled", {}
    yield cfg
    Troubled.opening, Troubled.hang = "say something", False


def test_an_environment_that_raises_ends_its_episode(troubled: Config) -> None:
    with serving(lambda request: said("hm")) as served:
        played = play(troubled, served)
    assert [t.ending for t in played] == [Ending.ENV_ERROR] * N
    assert "lost the cards" in str(played[0].error)
    assert [len(t.turns) for t in played] == [2] * N
    assert [t.turns[1].outcome for t in played] == ["ENV_ERROR"] * N


def test_an_environment_that_hangs_misses_its_deadline(troubled: Config) -> None:
    Troubled.hang, troubled.rollout.env_timeout_s = True, 0.2
    with serving(lambda request: said("hm")) as served:
        played = play(troubled, served, n=2)
    assert [t.ending for t in played] == [Ending.ENV_TIMEOUT] * 2


def test_roles_are_sent_and_a_tools_message_is_refused(troubled: Config) -> None:
    Troubled.opening = (Message.of("system", "s"), Message.of("user", "u"))
    with serving(lambda request: said("hm")) as served:
        play(troubled, served)
        assert served.requests[0]["messages"][:2] == [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
        ]
        troubled.rollout.system_prompt = "mine"
        with pytest.raises(RolloutError, match="a system message of its own"):
            play(troubled, served)
        troubled.rollout.system_prompt, Troubled.opening = None, Message.of("tool", "21 degrees")
        with pytest.raises(RolloutError, match="a message of the role tool"):
            play(troubled, served)


def test_the_record_is_read_back_and_refused_as_training_data(cfg: Config) -> None:
    with serving(lambda request: said("no")) as served:
        played = play(cfg, served)
    assert [jsonl.from_line(jsonl.to_line(t)) for t in played] == played
    assert played[0].token_ids == []
    assert played[0].turns[0].reported_tokens == 7
    with pytest.raises(LearnerError, match="m behind an endpoint"):
        assign_credit(played, {}, cfg)


def test_the_command_leaves_the_record_of_an_evaluation(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg.env_args = {"verify_iter": 1}
    cfg.eval_variants = ["faces_10"]

    def evaluated(folder: Path, answer: Callable[[Request], Reply]) -> int:
        with serving(answer) as served:
            return run.main(
                [
                    *(
                        PPO,
                        "task=eval",
                        "env_args={verify_iter: 1}",
                        "eval_variants=[faces_10]",
                        "eval.episodes=6",
                    ),
                    *(f"eval.endpoint={served.url}", "eval.endpoint_model=m", "tracking.backends=[]"),
                    *("eval.samples=2", f"output_dir={folder}"),
                ]
            )

    right, wrong = tmp_path / "right", tmp_path / "wrong"
    assert evaluated(right, solver(cfg, 200)) == 0
    shown = capsys.readouterr().out
    assert "100.0%" in shown
    summary = json.loads((right / "summary.json").read_bytes())
    assert summary["player"]["model"] == "m"
    greedy, sampled = (summary["eval"]["before"]["faces_10"][d] for d in ("greedy", "sampled"))
    assert (greedy["success"], greedy["n"], greedy["answer_tokens"]) == (1.0, 6, 7.0)
    assert (sampled["n"], sampled["pass_at"]["2"]["value"]) == (12, 1.0)
    page = (right / "report.html").read_text()
    assert "player: m at http://127.0.0.1" in page
    assert "the bare model" not in page
    (right / "report.html").unlink()
    assert report_main([str(right)]) == 0
    assert (right / "report.html").is_file()
    assert evaluated(wrong, lambda request: said("no")) == 0
    assert json.loads((wrong / "summary.json").read_bytes())["eval"]["before"]["faces_10"]["success"] == 0.0
    assert compare_runs.main([str(wrong), str(right), "-o", str(tmp_path / "both.html")]) == 0
    assert evaluated(tmp_path / "bad", lambda request: refusal(401, "no")) == 1


PPO = "experiment=generalpoints_ppo"
ENDPOINT = ("eval.endpoint=http://h:1/v1", "eval.endpoint_model=m")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["task=eval", ENDPOINT[0]],
            "eval.endpoint_model=None\n  reason: eval.endpoint=http://h:1/v1 may have",
        ),
        (["task=eval", ENDPOINT[1]], "eval.endpoint names no server"),
        (["task=rl", *ENDPOINT], "task=rl needs a model of this machine"),
        (["task=eval", "adapter=x", *ENDPOINT], "leave one of the two out"),
        (["task=eval", "eval.endpoint=ftp://h/v1", ENDPOINT[1]], "not an address of HTTP"),
        (["task=eval", "eval.endpoint=h/v1", ENDPOINT[1]], "not an address of HTTP"),
        (["task=eval", "eval.endpoint=http://h:x/v1", ENDPOINT[1]], "not an address (Port"),
        (["task=eval", "eval.endpoint='http://h/v1?k=1'", ENDPOINT[1]], "a query or a fragment"),
        (["task=eval", "model=tiny", *ENDPOINT], "model=tiny\n  reason: nothing reads it"),
        (["task=eval", "rollout.max_model_len=2048", *ENDPOINT], "nothing reads it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run.prepare([PPO, *overrides])
    assert told in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="a user or a password") as caught:
        run.prepare([PPO, "task=eval", "eval.endpoint=http://me:pass@h/v1", "eval.endpoint_model=m"])
    assert "pass@" not in str(caught.value)


def test_what_fits_is_taken() -> None:
    assert (
        run.prepare([PPO, "task=eval", "rollout.max_num_seqs=4", *ENDPOINT]).eval.endpoint == "http://h:1/v1"
    )


def test_an_agent_is_refused(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"task {i}"}) + "\n" for i in range(20)))
    agent = f"env_args={{path: {tasks}, agent: 'tests.agent_programs:appends'}}"
    own = ("experiment=own_ppo", "task=eval", "env=agent", agent)
    with pytest.raises(ConfigError, match=r"eval\.endpoint cannot play it: its program asks a model of this"):
        run.prepare([*own, *ENDPOINT])


def test_tools_are_refused_at_the_start_and_while_playing(cfg: Config) -> None:
    env = f"env={__name__}:Tooled"
    own = ("experiment=own_ppo", "task=eval", env, "train_variant=faces_10", "eval_variants=[faces_10]")
    with pytest.raises(ConfigError, match=r"eval\.endpoint cannot play it: it declares tools"):
        run.prepare([*own, *ENDPOINT])
    cfg.env, cfg.env_args = f"{__name__}:Tooled", {}
    with (
        serving(lambda request: said("hm")) as served,
        pytest.raises(RolloutError, match="it declares tools"),
    ):
        play(cfg, served)
    assert served.requests == []
