"""Refuses optimizers and schedules that cannot work with the other settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence

from rlpost.config.keys import refusal, refusal_of_all
from rlpost.config.optimizers import is_muons
from rlpost.config.schema import AdapterKind, Config, Optimizer, RateSchedule, Task
from rlpost.errors import ConfigError
from rlpost.validate.environment import TRAINING

# Kinds that have a pair of A and B in every layer.
PAIRED = {AdapterKind.lora, AdapterKind.rslora, AdapterKind.dora, AdapterKind.rsdora}
_UNSHARDED = "learner.zero_stage=0"


def _optimizer(config: Config) -> Iterator[str]:
    """What cannot be, all in one refusal of each of the two settings."""
    learner = config.learner
    way_out = "learner.optimizer=adamw"
    yield from refusal_of_all("learner.optimizer", learner.optimizer.name, _of_optimizer(config), way_out)
    if learner.lora_plus_ratio != 1.0:
        ratio = learner.lora_plus_ratio
        yield from refusal_of_all("learner.lora_plus_ratio", ratio, _of_ratio(config), "leave it out")


def _of_optimizer(config: Config) -> Iterator[tuple[str, str]]:
    """(reason, remedy) of what `learner.optimizer` cannot work with."""
    learner, kind = config.learner, config.lora.kind
    if learner.optimizer is Optimizer.lora_pro and kind not in PAIRED:
        yield f"lora.kind={kind.name} has no pair of A and B", "lora.kind=lora"
    if learner.optimizer is Optimizer.adamw_8bit:
        if learner.gpus == 0:
            yield "bitsandbytes updates 8-bit moments on a GPU alone, and learner.gpus=0", "learner.gpus=1"
        if importlib.util.find_spec("bitsandbytes") is None:
            yield "it needs the package bitsandbytes", "pip install bitsandbytes"
    if learner.zero_stage == 0 or learner.optimizer is Optimizer.adamw:
        return
    if learner.optimizer is Optimizer.adamw_8bit:
        cannot = "; that its 8-bit moments resume exactly from there is not known"
    else:
        cannot = f", and {learner.optimizer.name} needs matrices"
    yield _flattened(config) + cannot, _UNSHARDED


def _of_ratio(config: Config) -> Iterator[tuple[str, str]]:
    """(reason, remedy) of what `learner.lora_plus_ratio` cannot work with."""
    if config.learner.optimizer is Optimizer.lora_pro:
        reason = "learner.optimizer=lora_pro chooses the steps of A and B together, for one learning rate"
        yield reason, "learner.optimizer=adamw"
    if config.lora.kind not in PAIRED:
        yield f"lora.kind={config.lora.kind.name} has no B that could learn faster", "lora.kind=lora"
    if config.learner.zero_stage > 0:
        reason = f"{_flattened(config)}, and clips A and B apart if their learning rates differ"
        yield reason, _UNSHARDED


def _flattened(config: Config) -> str:
    return f"learner.zero_stage={config.learner.zero_stage} gives the optimizer one flat vector a role, cut by rank"


def check_muon(config: Config, trained: Mapping[str, Sequence[int]]) -> None:
    """Refuse Muon for a policy of vectors and embeddings. `trained`: the shapes of what it trains, by name.

    Raises ConfigError. `rlpost.validate.model`, which has the model, calls this.
    """
    if config.learner.optimizer is not Optimizer.muon or any(is_muons(*each) for each in trained.items()):
        return
    size = f" of rank {config.lora.rank}" if config.lora.kind in PAIRED else ""
    reason = (
        f"it updates matrices, and all that lora.kind={config.lora.kind.name}{size} with"
        f" lora.target_modules={config.lora.target_modules} trains are vectors or embeddings"
    )
    raise ConfigError(refusal("learner.optimizer", "muon", reason, "learner.optimizer=adamw"))


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


OPTIMIZER_CHECKS = tuple(map(_of_training, (_optimizer, _schedules)))
