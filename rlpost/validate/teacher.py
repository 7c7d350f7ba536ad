"""Refuses teachers (`algo.teacher`) that a run cannot learn from, and expert answers that its steps cannot share.

Part of rlpost.validate.checks. What needs the teacher's files is in rlpost.validate.teacher_fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config

_GIVE = "give the folder of an adapter (RUN/adapter), or a model of the same vocabulary"


def _teacher(config: Config) -> Iterator[str]:
    algo = config.algo
    if not TABLE[algo.name].taught:
        return
    if algo.teacher is None:
        yield refusal("algo.teacher", None, f"algo={algo.name.name} imitates a teacher", _GIVE)
    elif reason := _unreadable(Path(algo.teacher)):
        yield refusal("algo.teacher", algo.teacher, reason, _GIVE)
    if algo.dynamic_sampling:
        yield refusal(
            "algo.dynamic_sampling",
            True,
            f"algo={algo.name.name} learns from groups of equal rewards too, so it would replace good ones",
            "set it to false",
        )


def _unreadable(folder: Path) -> str | None:
    """Why `folder` holds no teacher; None if it may be one, or the name of a model."""
    if not folder.is_dir():
        return "no such folder" if str(folder).startswith(("/", ".", "~")) else None
    if (folder / "adapter_config.json").is_file():
        whole = (folder / "adapter_model.safetensors").is_file()
        return None if whole else "no adapter_model.safetensors there"
    return None if (folder / "config.json").is_file() else "neither an adapter nor a model is there"


def _expert_examples(config: Config) -> Iterator[str]:
    algo, steps = config.algo, config.algo.epochs * config.algo.minibatches
    if algo.expert_coef > 0 and algo.expert_examples < steps:
        yield refusal(
            "algo.expert_examples",
            algo.expert_examples,
            f"an iteration has {steps} optimizer steps (algo.epochs x algo.minibatches), and each takes its own share",
            f"give at least {steps}",
        )


TEACHER_CHECKS = (_teacher, _expert_examples)
