"""The main job as a user runs it: one whole run, and one that loses a worker, is stopped with Ctrl-C and goes on.

Both play the same seeds, so the second must end with the adapter of the first, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rlpost.weights import models
from rlpost.weights.adapters import Adapter
from tests.integration.runs import Finished, end, finish, reproducible, start, whole_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

ITERATIONS = 4
EVALUATED = 12
SETTINGS = (
    "experiment=generalpoints_ppo",
    f"algo.iterations={ITERATIONS}",
    "algo.critic_warmup=1",
    "algo.learning_rate=1e-3",
    "algo.kl_coef=0",
    "algo.minibatches=4",
    "algo.old_logprobs=learner",  # the KL to the start is then 0 at the start, in bfloat16 too
    "sft.steps=2",
    "sft.batch_size=16",
    "rollout.workers=1",
    "rollout.episodes=32",
    "env_args.verify_iter=2",
    f"eval.episodes={EVALUATED}",
    "eval.greedy=false",
    "learner.threads=1",  # two wait for one another, for long where other tests run beside them
    "tracking.checkpoint_every=2",
    "tracking.wandb=disabled",
)
START_DEADLINE_S = 480
GAPS = {"float32": 0.02, "bfloat16": 0.06}  # nats between engine and learner on a sampled token, as a mean


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return whole_run(tmp_path_factory.mktemp("whole") / "run", *SETTINGS)


@pytest.fixture(scope="module")
def interrupted(
    whole: Finished, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Finished, list[psutil.Process]]]:
    """Loses its rollout worker in the second iteration, gets Ctrl-C after the third; in the precision of the whole."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    process = start(*SETTINGS, f"dtype={whole.dtype}", f"output_dir={folder}")
    try:
        wait_for(lambda: iterations_done(folder) >= 1, process)
        (actor,) = actors_of(process)
        actor.kill()
        wait_for(lambda: iterations_done(folder) >= 3, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output = finish(process, 90)
        assert process.returncode == 130, output
        yield Finished(folder, output), children
    finally:
        if process.poll() is None:
            end(process)


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The rollout workers of a run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RolloutActor" in child.name() + " ".join(child.cmdline()):
                found.append(child)
    return found


def iterations_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"stage": "rl"') if path.is_file() else 0


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.2)


def test_the_record_is_whole(whole: Finished) -> None:
    for name in ("config.yaml", "versions.json", "report.html", "adapter/adapter_model.safetensors"):
        assert (whole.folder / name).stat().st_size > 0
    summary = whole.summary
    assert summary["iterations"] == ITERATIONS
    assert 0 < summary["swap_seconds_median"] < 10
    for stage in ("before", "warm", "after"):
        for variant in ("faces_10", "faces_11_12_13"):
            found = summary["eval"][stage][variant]
            assert found["n"] == EVALUATED
            assert found["low"] <= found["success"] <= found["high"]


def test_training_and_evaluation_instances_are_disjoint(whole: Finished) -> None:
    trained = {t.instance for i in range(ITERATIONS) for t in whole.episodes(f"iteration-{i:06d}")}
    tested = {
        t.instance for v in ("faces_10", "faces_11_12_13") for t in whole.episodes(f"eval-after-{v}-sampled")
    }
    assert trained
    assert tested
    assert not trained & tested


def test_the_time_is_accounted_for(whole: Finished) -> None:
    for line in whole.lines():
        seconds = {key: value for key, value in line.items() if key.startswith("seconds/")}
        total = seconds.pop("seconds/total")
        assert {"seconds/rollout", "seconds/logprobs", "seconds/update", "seconds/swap"} <= seconds.keys()
        assert abs(sum(seconds.values()) - total) < 1e-3 * total


def test_every_swap_was_proven_and_versions_go_up(whole: Finished) -> None:
    lines = whole.lines()
    assert [line["adapter_version"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert all(line["logprob_gap"] < GAPS[whole.dtype] for line in lines)
    # On the canary, prompt included, two bf16 forward passes of transformers differ by 0.017 without any adapter.
    assert all(line["swap/canary_gap"] < 0.05 for line in lines)
    assert all(line["swap/modules_bound"] == 42 for line in lines)


def test_the_policy_leaves_its_start(whole: Finished) -> None:
    """Generators serve what the learner makes: the KL to the start is 0 until the first policy step, then grows."""
    kl = [line["kl_reference"] for line in whole.lines()]
    assert abs(kl[0]) < 1e-6
    assert kl[-1] > 1e-4, kl


def test_plain_peft_gives_the_log_probs_that_were_recorded(whole: Finished) -> None:
    """The saved adapter, loaded without rlpost, explains the tokens that the engine sampled under it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models.resolve("tiny"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, whole.folder / "adapter").eval()
    gaps = []
    for episode in whole.episodes("eval-after-faces_10-sampled")[:12]:
        assert episode.policy_version == ITERATIONS + 1
        ids = torch.tensor([episode.token_ids])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        ours = table.gather(1, ids[0, 1:, None])[:, 0]
        recorded = torch.tensor([x for turn in episode.turns for x in turn.logprobs])
        mask = torch.tensor(episode.loss_mask[1:]).bool()
        gaps.append((ours[mask] - recorded).abs().mean().item())
        assert not torch.allclose(recorded, torch.zeros(()))
    assert sum(gaps) / len(gaps) < GAPS[whole.dtype]


def test_an_iteration_is_replayed_to_the_last_bit(whole: Finished) -> None:
    """Two updates from the checkpoint before; new engines play the episodes of the last iteration again."""
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    command = [sys.executable, "-m", "rlpost", "replay", str(whole.folder), "--iteration", "3", "--rollouts"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = [line for line in done.stdout.splitlines() if line.endswith("equal to the last bit")]
    assert [line.partition(" ")[0] for line in compared] == [
        *("iteration", "iteration", "iteration"),
        *("adapter/", "checkpoints/iteration-000004:"),
    ]
    assert before == {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}, "it is only read"


def test_ctrl_c_leaves_a_whole_checkpoint_and_no_process(
    interrupted: tuple[Finished, list[psutil.Process]],
) -> None:
    run, children = interrupted
    assert "Stopped." in run.output
    assert (run.folder / "checkpoints" / "iteration-000002" / "progress.json").is_file()
    assert not list((run.folder / "checkpoints").glob(".tmp-*"))
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [process.cmdline() for process in alive]


def test_sigterm_while_ray_is_waited_for_has_its_exit_code_and_leaves_no_process(tmp_path: Path) -> None:
    process = start(*SETTINGS, f"output_dir={tmp_path / 'run'}")
    try:
        wait_for(lambda: bool(actors_of(process)), process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output = finish(process, 90)
    finally:
        if process.poll() is None:
            end(process)
    assert process.returncode == 143, output
    assert "Stopped by SIGTERM." in output
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, [child.cmdline() for child in alive]


def test_a_run_that_lost_a_worker_and_was_resumed_ends_like_the_whole_one(
    whole: Finished, interrupted: tuple[Finished, list[psutil.Process]]
) -> None:
    run, _ = interrupted
    process = start(f"resume={run.folder}")
    output = finish(process)
    assert process.returncode == 0, output
    assert [reproducible(line) for line in run.lines()] == [reproducible(line) for line in whole.lines()]
    assert (
        Adapter.load(run.folder / "adapter").fingerprint == Adapter.load(whole.folder / "adapter").fingerprint
    )


def test_a_wrong_key_is_refused_before_anything_heavy() -> None:
    process = start("experiment=generalpoints_ppo", "rollout.wrokers=2")
    output = finish(process, 60)
    assert process.returncode == 2
    assert "rollout.workers" in output


def test_no_network_and_an_unknown_model_name_the_ways_out() -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlpost.run", "experiment=generalpoints_ppo", "model=nobody/nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert "tiny" in done.stdout + done.stderr
