"""Refuses environments that are unknown, cannot be made or have nothing to play, as rlpost.validate the rest."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium

from envs import registry
from envs.base import VariantInfo
from envs.errors import Refused, UnknownEnvironment
from rlpost.config import Config, Task
from rlpost.schema import refusal

TRAINING = (Task.ppo, Task.sft, Task.compare)


def environment(config: Config) -> Iterator[str]:
    """Refusals of `env`, `env_args`, `train_variant` and `eval_variants`."""
    try:
        variants = {each.name: each for each in registry.variants(config.env, **config.env_args)}
        env = registry.make(config.env, **config.env_args)
    except (TypeError, ValueError) as error:
        yield _refused_environment(config, error)
        return
    refusals = [*_evaluated_variants(config, variants), *_training_variant(config, variants)]
    yield from refusals or _instances(config, env)
    env.close()


def _refused_environment(config: Config, error: Exception) -> str:
    """Either there is no such environment, or its arguments are at fault."""
    unknown = isinstance(error, UnknownEnvironment)
    key, value = ("env", config.env) if unknown else ("env_args", config.env_args)
    return refusal(key, value, *_reason_and_remedy(error, f"see the arguments of {config.env}"))


def _reason_and_remedy(error: Exception, remedy: str) -> tuple[str, str]:
    if isinstance(error, Refused):
        return error.reason, error.remedy
    return f"{type(error).__name__}: {error}", remedy


def _evaluated_variants(config: Config, variants: dict[str, VariantInfo]) -> Iterator[str]:
    choose = "choose from " + ", ".join(variants)
    for name in config.eval_variants:
        if name not in variants:
            yield refusal("eval_variants", name, f"{config.env} has no such variant", choose)
    if len(set(config.eval_variants)) != len(config.eval_variants) or not config.eval_variants:
        yield refusal("eval_variants", config.eval_variants, "empty, or one stands twice", "name each once")


def _instances(config: Config, env: gymnasium.Env[str, str]) -> Iterator[str]:
    """Whether there is anything to train and to evaluate on."""
    wanted = [("eval_variants", name, "eval") for name in config.eval_variants]
    if config.task in TRAINING:
        wanted.append(("train_variant", config.train_variant, "train"))
    for key, variant, split in wanted:
        try:
            env.reset(seed=config.seed, options={"variant": variant, "split": split})
        except Exception as error:  # an environment may raise anything, and would for hours
            yield refusal(key, variant, *_reason_and_remedy(error, f"see python -m envs.check {config.env}"))


def _training_variant(config: Config, variants: dict[str, VariantInfo]) -> Iterator[str]:
    allowed = "choose from " + ", ".join(name for name, variant in variants.items() if not variant.held_out)
    name = config.train_variant
    if name not in variants:
        yield refusal("train_variant", name, f"{config.env} has no such variant", allowed)
    elif config.task in TRAINING and variants[name].held_out:
        yield refusal("train_variant", name, "it is held out: only for evaluation", allowed)
