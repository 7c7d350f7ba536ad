"""Refuses adapters that a run cannot have, without the model's files, as part of rlpost.validate.checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.keys import refusal
from rlpost.config.schema import BaseKind, Config, Task
from rlpost.validate.environment import TRAINING


def _adapter(config: Config) -> Iterator[str]:
    if config.adapter is None:
        return
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(config.adapter) / name).is_file():
            yield refusal(
                "adapter", config.adapter, f"no {name} there", _adapter_remedy(Path(config.adapter))
            )
    if config.task is Task.tiny_base:
        yield refusal("adapter", config.adapter, "task=tiny_base trains no adapter", "leave it out")


def _adapter_remedy(folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():  # a pickle, which could run code, so it is not read
        return "it has adapter_model.bin, as older PEFT wrote: load it with PEFT, and save_pretrained() again"
    return "name a folder that PEFT saved, such as RUN/adapter"


def _modules(config: Config) -> Iterator[str]:
    names = config.lora.target_modules
    if not re.fullmatch(r"all-linear|\w+(,\w+)*", names):
        yield refusal(
            "lora.target_modules", names, "not a list of module names", "give all-linear, or 'q_proj,v_proj'"
        )


def _zero3(config: Config) -> Iterator[str]:
    stage, kind = config.learner.zero_stage, config.lora.kind
    if stage == 3 and config.task in TRAINING and not TABLE[kind].zero3:
        reads = "PEFT's layers of lora.kind={} read it from outside"
        takes_turns = "with lora.kind={} the roles' parameters take turns in a module"
        why = takes_turns if TABLE[kind].whole else reads
        yield refusal(
            "learner.zero_stage",
            stage,
            f"ZeRO-3 gathers a parameter for its own module only, and {why.format(kind.name)}",
            "give at most 2, or lora.kind=lora",
        )


def _base(config: Config) -> Iterator[str]:
    base, name = config.lora.base, config.lora.kind.name
    kind = TABLE[config.lora.kind]
    if base is BaseKind.stored or (kind.nf4 and not kind.whole):
        return
    takes = f"PEFT's layers of lora.kind={name} take plain linear layers only"
    trains = f"lora.kind={name} trains the model's own parameters, and a base in 4 bits is frozen"
    remedy = "give lora.base=stored, or another adapter: lora.kind=lora"
    yield refusal("lora.base", base.name, trains if kind.whole else takes, remedy)


ADAPTER_CHECKS = (_adapter, _modules, _zero3, _base)
