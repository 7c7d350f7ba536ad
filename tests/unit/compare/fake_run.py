"""A stand-in for a cell's process: over at once, with the record that a real run would leave."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlpost.compare.cells import CellFiles, Ended
from rlpost.compare.design.types import Status
from rlpost.config.compose import compose, to_yaml
from rlpost.config.schema import Config, Task
from rlpost.record.run_dir import RunDir, iteration_name, step_name
from rlpost.tasks.evaluate import decodings
from rlpost.tasks.schedule import Schedule
from rlpost.types import Trajectory
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.unit.episodes import episode, turn

ITERATION = {"tokens/prompt": 100, "tokens/sampled": 100, "tokens/scored": 200, "tokens/trained": 400}
PLAYED = {"episodes": 16.0, "success": 0.25}
STEP = {"tokens/trained": 64, "examples": 4.0}
SECONDS = {"seconds/rollout": 1.0, "seconds/update": 2.0, "seconds/evaluation": 50.0}


def comparison(folder: Path, *overrides: str) -> Config:
    """One seed, two arms, eight iterations, two points, three instances a variant."""
    cfg = copy.deepcopy(_composed(overrides))
    cfg.output_dir = str(folder)
    return cfg


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return compose(
        [
            "experiment=generalpoints_sft_vs_rl",
            "eval_variants=[faces_10,faces_11_12_13]",
            "algo.iterations=8",
            "compare.points=2",
            "seeds=[0]",
            "eval.episodes=3",
            "sft.steps=2",
            *overrides,
        ]
    )


class FakeRun:
    """Takes the place of rlpost.compare.cells.Running."""

    def __init__(self, files: CellFiles, cfg: Config, error: str | None = None) -> None:
        self.files, self.seconds, self.stopped = files, 2.0, False
        self._error = error
        files.config.parent.mkdir(parents=True, exist_ok=True)
        files.config.write_text(to_yaml(cfg))
        if error is None:
            write_record(files.run_dir.path, cfg)

    def ended(self) -> Ended | None:
        if self._error is None:
            return Ended(Status.DONE, None, self.seconds)
        return Ended(Status.FAILED, self._error, self.seconds)

    def ask_to_stop(self) -> None:
        self.stopped = True

    def wait(self, deadline: float) -> None: ...

    def kill(self) -> None: ...


def write_record(path: Path, cfg: Config) -> None:
    run_dir = RunDir.create(path, "fake", cfg.seed, to_yaml(cfg))
    if cfg.eval.start:
        evaluate(run_dir, cfg, "before")
    if cfg.task is Task.rl:
        _train(run_dir, cfg, cfg.algo.iterations, "iteration", ITERATION | PLAYED, iteration_name, _play)
    elif cfg.task is Task.sft:
        _train(run_dir, cfg, cfg.sft.steps, "step", STEP, step_name, _show)
    if cfg.task is not Task.eval:
        evaluate(run_dir, cfg, "after")
        _write_adapter(run_dir.adapter)
    run_dir.write_summary({})


def _write_adapter(folder: Path) -> None:
    """A LoRA of rank 1 on one projection of the bundled model."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    torch.manual_seed(0)
    tensors = {f"{name}.lora_A.weight": torch.randn(1, 256), f"{name}.lora_B.weight": torch.randn(256, 1)}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    Adapter.create(config, tensors, 1).save(folder)


def _train(
    run_dir: RunDir,
    cfg: Config,
    last: int,
    key: str,
    tokens: dict[str, float],
    stage: Callable[[int], str],
    learn: Callable[[RunDir, int], Any],
) -> None:
    schedule, done = Schedule(cfg, last, TINY), 0
    while not schedule.over:
        line = {key: done, **tokens, **SECONDS}
        learn(run_dir, done)
        run_dir.append_metrics(line)
        schedule.add(line)
        if schedule.due:
            evaluate(run_dir, cfg, stage(done))
        done += 1


def _play(run_dir: RunDir, iteration: int) -> None:
    run_dir.write_trajectories(iteration_name(iteration), [instance(episode(turn()), f"train {iteration}")])


def _show(run_dir: RunDir, step: int) -> None:
    run_dir.append_examples(step, [f"train {step}", "train 0"])


def evaluate(run_dir: RunDir, cfg: Config, stage: str) -> None:
    """Sampled answers are right at the second attempt, greedy ones never."""
    right, wrong = (turn(), turn("CORRECT", 5.0)), (turn(), turn())
    for variant in cfg.eval_variants:
        for decoding in decodings(cfg):
            turns = right if decoding == "sampled" else wrong
            played = [
                instance(episode(*turns, success=turns is right, index=k, variant=variant), f"eval {k}")
                for k in range(cfg.eval.episodes)
            ]
            run_dir.write_evaluation(stage, variant, decoding, played)


def instance(trajectory: Trajectory, name: str) -> Trajectory:
    return dataclasses.replace(trajectory, instance=name)
