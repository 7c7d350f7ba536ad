"""Start runs from Python: `train`, `start` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from rlpost.api import execute
from rlpost.api.execute import OnMetrics
from rlpost.api.record import Run, Started
from rlpost.api.words import Function, Rows, named, rows_given, words
from rlpost.config.schema import Task
from rlpost.envs import given

TRAINING = (Task.rl, Task.sft)


def train(
    experiment: str | Path | None = None,
    *,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    reward_model: str | Function | None = None,
    settings: Mapping[str, Any] | None = None,
    on_metrics: OnMetrics | None = None,
    resume: str | Path | None = None,
) -> Run:
    """Train as `rlpost experiment=...` does, in this process; returns when the run is over.

    Args:
        experiment: a name of experiments/, or a file of one's own (.yaml). Not needed with `resume`.
        env: the environment: a name as on the command line, or a class that derives from gymnasium.Env.
        data: rows of a data set (`env=dataset`): a path as in env_args.path, or the rows, each a JSON object.
        reward: what scores answers to the rows: a function, a name as in env_args.score, or a list of these.
        reward_model: gives an iteration's episodes other rewards (algo.reward_function): list of Trajectory to the
            same with other rewards. It runs in this process.
        settings: every other setting: {"algo.iterations": 3}, or nested.
        on_metrics: called with the figures of each iteration and supervised step, as metrics.jsonl has them. What it
            raises is warned of once and ends the calls, not the run.
        resume: the folder of a run to go on with. Objects that it was given are given again.

    Raises:
        ConfigError: settings, rows or objects are refused; nothing has started.
        RlpostError: the run failed; its record has what was done. `rlpost.errors` has the kinds.
        KeyboardInterrupt: Ctrl-C. The record stays, and can be resumed.
    """
    handover = given.Handover()
    typed = words(experiment, resume, settings, named(handover, env, data, reward, reward_model))
    folder = execute.run(typed, handover.objects, rows_given(data), TRAINING, on_metrics)
    return Run(folder, handover.objects, _trusted=True)


def start(
    experiment: str | Path | None = None,
    *,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    reward_model: str | Function | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
) -> Started:
    """Train in a process of its own; returns at once. Arguments and refusals are those of `train`.

    The run ends with this process, if not before. What it prints is in `console.log` of its folder.
    """
    from rlpost.api.background import Process

    handover = given.Handover()
    typed = words(experiment, resume, settings, named(handover, env, data, reward, reward_model))
    with execute.prepared(typed, handover.objects, rows_given(data), TRAINING) as (_, whole, folder):
        process = Process(whole, handover.objects, folder)
    return Started(folder, handover.objects, _trusted=True, _process=process)


def evaluate(
    experiment: str | Path,
    *,
    adapter: str | Path | None = None,
    env: str | type[gymnasium.Env[Any, Any]] | None = None,
    data: str | Path | Rows | None = None,
    reward: str | Function | Sequence[str | Function] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Evaluate an adapter in PEFT's format, or without one the bare model, as `task=eval` does; see `train`."""
    handover = given.Handover()
    settled = {**named(handover, env, data, reward, None), "task": Task.eval}
    if adapter is not None:
        settled["adapter"] = adapter
    typed = words(experiment, None, settings, settled)
    folder = execute.run(typed, handover.objects, rows_given(data), (Task.eval,), None)
    return Run(folder, handover.objects, _trusted=True)
