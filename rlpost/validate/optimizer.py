"""Refuses optimizers and schedules that cannot work with the other settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from rlpost.config.keys import refusal
from rlpost.config.schema import AdapterKind, Config, Optimizer, RateSchedule, Task
from rlpost.validate.environment import TRAINING

# Kinds that have a pair of A and B in every layer.
PAIRED = {AdapterKind.lora, AdapterKind.rslora, AdapterKind.dora, AdapterKind.rsdora}


def _optimizer(config: Config) -> Iterator[str]:
    learner, kind = config.learner, config.lora.kind
    name, ratio = learner.optimizer.name, learner.lora_plus_ratio
    if learner.optimizer is Optimizer.lora_pro:
        if kind not in PAIRED:
            reason = f"lora.kind={kind.name} has no pair of A and B"
            yield refusal("learner.optimizer", name, reason, "learner.optimizer=adamw")
        if ratio != 1.0:
            reason = "learner.optimizer=lora_pro chooses the steps of A and B together, for one learning rate"
            yield refusal(
                "learner.lora_plus_ratio", ratio, reason, "leave it out, or learner.optimizer=adamw"
            )
    if ratio != 1.0 and kind not in PAIRED:
        reason = f"lora.kind={kind.name} has no B that could learn faster"
        yield refusal("learner.lora_plus_ratio", ratio, reason, "leave it out")


def _zero(config: Config) -> Iterator[str]:
    learner, remedy = config.learner, "learner.zero_stage=0"
    if learner.zero_stage == 0:
        return
    flattens = (
        f"learner.zero_stage={learner.zero_stage} gives the optimizer one flat vector a role, cut by rank"
    )
    if learner.optimizer in (Optimizer.lora_pro, Optimizer.muon):
        name = learner.optimizer.name
        yield refusal("learner.optimizer", name, f"{flattens}, and {name} needs matrices", remedy)
    if learner.optimizer is Optimizer.adamw_8bit:
        reason = f"{flattens}; that its 8-bit moments resume exactly from there is not known"
        yield refusal("learner.optimizer", "adamw_8bit", reason, f"{remedy}, or learner.optimizer=adamw")
    if learner.lora_plus_ratio != 1.0:
        reason = f"{flattens}, and clips A and B apart if their learning rates differ"
        yield refusal(
            "learner.lora_plus_ratio", learner.lora_plus_ratio, reason, f"{remedy}, or leave it out"
        )


def _eight_bit(config: Config) -> Iterator[str]:
    if config.learner.optimizer is not Optimizer.adamw_8bit:
        return
    if config.learner.gpus == 0:
        reason = "bitsandbytes updates 8-bit moments on a GPU alone, and learner.gpus=0"
        yield refusal("learner.optimizer", "adamw_8bit", reason, "learner.gpus=1, or learner.optimizer=adamw")
    if importlib.util.find_spec("bitsandbytes") is None:
        reason = "it needs the package bitsandbytes"
        yield refusal("learner.optimizer", "adamw_8bit", reason, "pip install bitsandbytes")


def _schedules(config: Config) -> Iterator[str]:
    for key, group in (("sft", config.sft), ("algo", config.algo)):
        if group.schedule is RateSchedule.constant or (key == "algo" and config.task is Task.sft):
            continue
        name, trains = group.schedule.name, key == "algo" or config.task is Task.sft
        if config.task is Task.compare or (trains and config.budget.amounts):
            reason = "a budget of compute ends the training, so its last optimizer step is not known"
            yield refusal(f"{key}.schedule", name, reason, f"{key}.schedule=constant")
        elif (steps := _steps(config, key)) and group.warmup_steps >= steps:
            reason = f"the warm-up lasts for all {steps} optimizer steps"
            remedy = f"give less than {steps}, or {key}.schedule=constant"
            yield refusal(f"{key}.warmup_steps", group.warmup_steps, reason, remedy)


def _steps(config: Config, key: str) -> int:
    """The optimizer steps of SFT, or of the policy in RL."""
    algo = config.algo
    if key == "sft":
        return config.sft.steps
    return (algo.iterations - algo.critic_warmup) * algo.epochs * algo.minibatches


def _of_training(check: Callable[[Config], Iterator[str]]) -> Callable[[Config], Iterator[str]]:
    """The check, for tasks that train an adapter."""

    def checked(config: Config) -> Iterator[str]:
        if config.task in TRAINING:
            yield from check(config)

    return checked


OPTIMIZER_CHECKS = tuple(map(_of_training, (_optimizer, _zero, _eight_bit, _schedules)))
