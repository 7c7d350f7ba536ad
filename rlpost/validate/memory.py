"""Refuses a run whose memory cannot fit this machine, before Ray starts, and says which settings need less.

Only what every run allocates counts, less a margin for the plan's error: activations and the KV cache grow with the
episodes and are left out, so nothing is refused that could run. `rlpost doctor` shows the whole plan.
"""

from __future__ import annotations

from pathlib import Path

from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config, Task
from rlpost.errors import ConfigError
from rlpost.memory.limit import memory_limit
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import Plan
from rlpost.memory.plan import PLANNED, Saving, memory_plan, savings
from rlpost.weights import teachers
from rlpost.weights.models import resolve

MARGIN = 0.15  # of the plan, by which it may be too large
REMEDIES = 4  # settings that a refusal names
GIB = 2**30


def check_memory(cfg: Config, model_folder: Path) -> None:
    """Check the run's processes against this machine. `cfg.dtype` must be settled.

    On a joined cluster nothing is checked: its nodes have the memory. Raises ConfigError; ModelError if the model's
    files cannot be read.
    """
    if cfg.ray.address is not None or cfg.task not in PLANNED:
        return
    shape, teacher = ModelShape.read(model_folder), teacher_shape(cfg)
    if reason := shortage(memory_plan(cfg, shape, teacher), memory_limit(), "this machine"):
        words = remedy(savings(cfg, shape, teacher, certain_only=True))
        raise ConfigError(refusal("model", cfg.model, reason, words))


def teacher_shape(cfg: Config) -> ModelShape | None:
    """The sizes of the model that algo.teacher names; None if it is an adapter, or the run has no teacher.

    Raises ModelError if its files cannot be read.
    """
    teacher = cfg.algo.teacher
    if cfg.task is not Task.rl or not TABLE[cfg.algo.name].taught or teacher is None:
        return None
    return None if teachers.is_adapter(teacher) else ModelShape.read(resolve(teacher))


def shortage(plan: Plan, limit: int, where: str) -> str | None:
    """Why a plan cannot fit in `limit` bytes, process by process; None if it may fit."""
    least = plan.size(certain_only=True)
    if least * (1 - MARGIN) <= limit:
        return None
    listed = ", ".join(
        f"{process.count} x {process.name} {gib(process.size(certain_only=True))}"
        for process in plan.processes
        if process.size(certain_only=True)
    )
    return (
        f"the run takes at least {gib(least)} of memory, without activations and KV cache, and {where} has"
        f" {gib(limit)}: {listed}"
    )


def remedy(found: list[Saving]) -> str:
    """The settings that help most, with what each saves."""
    listed = "; ".join(f"{each.words} saves {gib(each.size)}" for each in found[:REMEDIES])
    return (
        f"{listed}; or a smaller model" if listed else "take a smaller model, or a machine with more memory"
    )


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
