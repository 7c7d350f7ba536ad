"""What is done with a run, on a short real one: each way to its policy gives the log-probs that the run recorded."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.types import Trajectory
from rlpost.verbs import merge
from rlpost.weights.models import TINY
from tests.integration.runs import whole_run

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TIGHT = 2e-4  # of log-probs in fp32, engine to transformers; summed over neither tokens nor episodes
EPISODES = 8
START_S = 240.0
VARIANT = "faces_10"


LORA = ("lora.kind=lora",)
FULL = (
    "lora.kind=full",
    "sft.learning_rate=1e-4",
    "algo.learning_rate=1e-4",
    "algo.critic_learning_rate=1e-4",
)


@pytest.fixture(scope="module", params=[LORA, FULL], ids=["lora", "full"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunDir:
    """A supervised step and an iteration in float32."""
    return RunDir(
        whole_run(
            tmp_path_factory.mktemp("verbs") / "run",
            *(
                "experiment=generalpoints_ppo",
                *request.param,
                "dtype=float32",
                "rollout.workers=1",
                "rollout.episodes=16",
            ),
            *("sft.steps=2", "algo.iterations=1", "algo.critic_warmup=0", f"eval.episodes={EPISODES}"),
            *(
                "eval.greedy=false",
                "eval.start=false",
                f"eval_variants=[{VARIANT}]",
                "tracking.wandb=disabled",
            ),
        ).folder
    )


@pytest.fixture(scope="module")
def recorded(run: RunDir) -> list[Trajectory]:
    """The evaluation of the last adapter."""
    return read_trajectories(run.evaluations()["after", VARIANT, "sampled"])


def gap(model: Any, episodes: list[Trajectory]) -> float:
    """Largest |log-prob - recorded log-prob| of a sampled token."""
    worst = 0.0
    for episode in episodes:
        (turn,) = episode.turns
        ids_1T = torch.tensor([[*turn.context_ids, *turn.answer_ids]])
        with torch.no_grad():
            logprobs_TV = model.eval()(input_ids=ids_1T).logits[0, :-1].float().log_softmax(-1)
        chosen_T = logprobs_TV.gather(1, ids_1T[0, 1:, None])[len(turn.context_ids) - 1 :, 0]
        worst = max(worst, (chosen_T - torch.tensor(turn.logprobs)).abs().max().item())
    return worst


def test_the_base_alone_would_not_do(recorded: list[Trajectory]) -> None:
    assert len(recorded) == EPISODES
    assert gap(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), recorded) > 50 * TIGHT


@pytest.mark.parametrize("run", [LORA], indirect=True, ids=["lora"])
def test_pefts_one_liner(run: RunDir, recorded: list[Trajectory]) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(str(run.adapter), dtype=torch.float32)
    assert gap(model, recorded) < TIGHT


def test_plain_transformers_on_the_merged_model(
    run: RunDir, recorded: list[Trajectory], tmp_path: Path
) -> None:
    assert merge.main([str(run.path), str(tmp_path / "merged")]) == 0
    assert gap(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto"), recorded) < TIGHT


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For the server's temporary folder: a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="verbs-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def server(
    run: RunDir, temporary: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rlpost",
                "serve",
                str(run.path),
                "--port",
                str(port),
                "--threads",
                "1",
            ],
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        try:
            wait_for(process, client, tmp_path / "server.log")
            yield process, client
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(process: subprocess.Popen[str], client: openai.OpenAI, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            client.models.list()
        except openai.APIConnectionError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the server did not answer within {START_S} s: {log.read_text()}")


def children() -> str:
    """Command lines of all processes here."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_the_server_gives_the_recorded_logprobs_and_leaves_nothing(
    server: tuple[subprocess.Popen[str], openai.OpenAI],
    run: RunDir,
    recorded: list[Trajectory],
    temporary: Path,
) -> None:
    process, client = server
    for episode in recorded[:3]:
        (turn,) = episode.turns
        ids = [*turn.context_ids, *turn.answer_ids]
        made = client.completions.create(
            model="run", prompt=ids, max_tokens=1, temperature=1.0, extra_body={"prompt_logprobs": 0}
        )
        scored = (made.choices[0].model_extra or {})["prompt_logprobs"][len(turn.context_ids) :]
        values = [at[str(token)]["logprob"] for at, token in zip(scored, turn.answer_ids, strict=True)]
        assert values == pytest.approx(turn.logprobs, abs=TIGHT)
    question = recorded[0].turns[0]
    chat = client.chat.completions.create(
        model="run",
        messages=[{"role": "user", "content": question.observation}],
        max_tokens=1,
        extra_body={"return_token_ids": True},
    )
    assert (chat.model_extra or {})["prompt_token_ids"] == list(question.context_ids), (
        "the chat template is kept"
    )
    (own,) = temporary.iterdir()
    assert (own / "model" / "config.json").is_file()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list(temporary.iterdir()) == []
    assert str(own) not in children()


def test_chat_plays_the_evaluation_again(run: RunDir, recorded: list[Trajectory]) -> None:
    """The same instances, dice and answers, one alone in the batch; the verdicts are the environment's."""
    done = subprocess.run(
        [sys.executable, "-m", "rlpost", "chat", str(run.path), "--env"],
        input="\n\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    for episode in recorded[:3]:
        (turn,) = episode.turns
        told = f"{VARIANT}, instance {episode.instance}\n{turn.observation}\n{turn.answer}\n"
        assert told in done.stdout
        assert re.search(re.escape(f"{turn.outcome}, reward {turn.reward:+g}, "), done.stdout)
