"""Settings under which engines cannot sleep, or would free nothing: what is refused, and why."""

from __future__ import annotations

import pytest

from rlpost import run
from rlpost.errors import ConfigError

GRPO, SLEEP = "experiment=generalpoints_grpo", "rollout.sleep=true"
ON_ONE_GPU = ["rollout.gpus=0.5", "learner.gpus=0.5"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            [],
            "rollout.sleep=true\n  reason: rollout.gpus=0: engines run on the CPU, where vLLM has no sleep mode",
        ),
        (["learner.gpus=1"], "where vLLM has no sleep mode"),
        (["rollout.gpus=1"], "learner.gpus=0: the learner needs no GPU memory"),
        (
            ["rollout.gpus=0.6", "learner.gpus=0.5"],
            "learner.gpus=0.5 Ray gives engine and learner a GPU each",
        ),
        ([*ON_ONE_GPU, "rollout.max_staleness=1"], "engines play while the learner works, and never rest"),
        (
            [*ON_ONE_GPU, "rollout.workers=2", "rollout.gpus=0.25", "rollout.min_workers=1"],
            "rollout.min_workers=1\n  reason: with rollout.sleep a worker that joins late",
        ),
        (
            [*ON_ONE_GPU, "rollout.workers=1", "ray.address=auto", "rollout.max_workers=2"],
            "rollout.max_workers=2\n  reason: with rollout.sleep a worker that joins late",
        ),
        (
            [*ON_ONE_GPU, "task=eval"],
            "rollout.sleep=True\n  reason: nothing reads it: this task has no learner",
        ),
    ],
)
def test_what_contradicts_or_frees_nothing_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run.prepare([GRPO, SLEEP, *overrides])
    assert told in str(caught.value)
    assert "\n  remedy: " in str(caught.value)


@pytest.mark.parametrize("task", ["rl", "sft"])
def test_on_one_gpu_it_is_allowed(task: str) -> None:
    assert run.prepare([GRPO, SLEEP, *ON_ONE_GPU, f"task={task}"]).rollout.sleep


def test_the_remedies_are_accepted() -> None:
    run.prepare([GRPO, SLEEP, *ON_ONE_GPU, "rollout.max_staleness=0"])
    run.prepare([GRPO, "rollout.sleep=false"])
