"""The adapters that the configuration names by their folders. They are read beside the driver and sent to every rank,
whose node need not have the folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlpost.config.presets import TABLE
from rlpost.config.schema import Config, Task
from rlpost.errors import LearnerError
from rlpost.weights import teachers
from rlpost.weights.adapters import Adapter


@dataclass(frozen=True)
class NamedAdapters:
    """`teacher` is None if `algo.teacher` is a model of its own, or if the task has no teacher."""

    start: Adapter | None = None  # of adapter=
    teacher: Adapter | None = None  # of algo.teacher

    @classmethod
    def of(cls, cfg: Config) -> NamedAdapters:
        """Raises AdapterError if an adapter cannot be read, LearnerError if the algorithm lacks its teacher."""
        start = None if cfg.adapter is None else Adapter.load(Path(cfg.adapter))
        teacher = teacher_named(cfg)
        if teacher is None or not teachers.is_adapter(teacher):
            return cls(start)
        return cls(start, Adapter.load(Path(teacher)))


def teacher_named(cfg: Config) -> str | None:
    """What `algo.teacher` names, if the task learns from a teacher. Raises LearnerError if it is not given."""
    if cfg.task is not Task.rl or not TABLE[cfg.algo.name].taught:
        return None
    if cfg.algo.teacher is None:
        raise LearnerError(f"algo={cfg.algo.name.name} learns from a teacher; give algo.teacher")
    return cfg.algo.teacher
