"""The memory plan of a run: every process with its parts, and the settings that would make it smaller.

    config.json, headers ─▶ ModelShape ─┐
                              settings ─┴▶ Plan: driver, Ray's daemons, object store, rollout workers, learner ranks

The plan has a GPU's memory apart from the machine's. It knows no user's environment and no data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlpost.cluster.object_store import VERSIONS_AT_ONCE
from rlpost.config.schema import AdapterKind, BaseKind, Config, Dtype, Task
from rlpost.memory import runtime
from rlpost.memory.engine import rollout_worker
from rlpost.memory.learner import learner_rank
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import FLOAT, Part, Plan, Process
from rlpost.memory.trained import trained_numbers

PLANNED = (Task.rl, Task.sft, Task.eval, Task.compare)
_PLAIN_LORA = 32  # the rank that a whole kind is compared with


def memory_plan(cfg: Config, shape: ModelShape, teacher: ModelShape | None = None) -> Plan:
    """The plan of `cfg`, whose `dtype` must be settled; of task=compare, that of one cell trained by `algo`.

    `teacher` is the model that algo.teacher names, if it is one of its own.
    """
    if cfg.task is Task.compare:
        cfg = replace(cfg, task=Task.rl)
    processes = [
        Process(
            "driver",
            1,
            (Part("libraries", runtime.DRIVER), Part("tokenizer", runtime.TOKENIZER * shape.words)),
        ),
        Process("Ray's daemons", 1, (Part("libraries", runtime.RAY_DAEMONS),)),
    ]
    if cfg.task is not Task.eval:
        sent = VERSIONS_AT_ONCE * FLOAT * trained_numbers(shape, cfg.lora)
        processes.append(Process("object store", 1, (Part("versions of the weights", sent, certain=False),)))
    if cfg.eval.endpoint is None:
        processes.append(rollout_worker(cfg, shape))
    if cfg.task is not Task.eval:
        processes.append(learner_rank(cfg, shape, teacher))
    return Plan(tuple(processes))


@dataclass(frozen=True)
class Saving:
    """Settings, as typed on the command line, and the bytes that the plan then has less."""

    words: str
    size: int


def savings(
    cfg: Config, shape: ModelShape, teacher: ModelShape | None = None, certain_only: bool = False
) -> list[Saving]:
    """The changes of one setting that make the plan smaller, largest saving first."""
    before = memory_plan(cfg, shape, teacher).size(certain_only)
    found = [
        Saving(words, before - memory_plan(changed, shape, teacher).size(certain_only))
        for words, changed in _changes(cfg)
    ]
    return sorted((each for each in found if each.size > 0), key=lambda each: -each.size)


def _changes(cfg: Config) -> Iterator[tuple[str, Config]]:
    """Settings that may save memory. Those that save none in this run are left out by the caller."""
    rollout, learner, lora = cfg.rollout, cfg.learner, cfg.lora
    yield from (_of(cfg, "rollout", "workers", n) for n in (1,) if rollout.workers > n)
    yield from (_of(cfg, "learner", "workers", n) for n in (1,) if learner.workers > n)
    yield _of(cfg, "rollout", "kv_cache_gib", rollout.kv_cache_gib / 2)
    if rollout.sleep:
        yield _of(cfg, "rollout", "sleep", False)
    if learner.micro_batch_tokens >= 2 * rollout.max_model_len:  # a row must fit
        yield _of(cfg, "learner", "micro_batch_tokens", learner.micro_batch_tokens // 2)
    if not learner.gradient_checkpointing:
        yield _of(cfg, "learner", "gradient_checkpointing", True)
    if learner.zero_stage == 0 and learner.workers > 1:
        yield _of(cfg, "learner", "zero_stage", 1)
    if cfg.dtype is Dtype.float32:
        yield "dtype=bfloat16", replace(cfg, dtype=Dtype.bfloat16)
    if lora.kind is AdapterKind.full:
        yield (
            f"lora.kind=lora lora.rank={_PLAIN_LORA}",
            replace(cfg, lora=replace(lora, kind=AdapterKind.lora, rank=_PLAIN_LORA)),
        )
    elif lora.base is BaseKind.stored:
        yield "lora.base=nf4", replace(cfg, lora=replace(lora, base=BaseKind.nf4))


def _of(cfg: Config, group: str, name: str, value: Any) -> tuple[str, Config]:
    """`cfg` with one setting of a group changed, and how it is typed."""
    typed = (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    )
    return f"{group}.{name}={typed}", replace(cfg, **{group: replace(getattr(cfg, group), **{name: value})})
