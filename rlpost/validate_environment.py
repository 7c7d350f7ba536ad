"""Refuses environments that are unknown, cannot be made or have nothing to play, as rlpost.validate the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import gymnasium

from envs import registry
from envs.base import VariantInfo
from envs.errors import Refused, UnknownEnvironment
from rlpost.config import Config, Task
from rlpost.errors import RolloutError
from rlpost.rollout.env_threads import within
from rlpost.rundir import evaluation_name, iteration_name
from rlpost.schema import refusal

TRAINING = (Task.ppo, Task.sft, Task.compare)
_LONGEST_FILE = 255 - len(".jsonl") - 16  # bytes; 16 for what the name of a half-written file adds
_MORE_TIME = "mend it, or give more to rollout.env_timeout_s if it is only slow"

T = TypeVar("T")


def environment(config: Config) -> Iterator[str]:
    """Refusals of `env`, `env_args`, `train_variant` and `eval_variants`."""
    try:
        known = _in_time(config, "its variants", partial(registry.variants, config.env, **config.env_args))
        env = _in_time(config, "making it", partial(registry.make, config.env, **config.env_args))
    except RolloutError as error:
        yield refusal("env", config.env, str(error), _MORE_TIME)
        return
    except (TypeError, ValueError) as error:
        yield _refused_environment(config, error)
        return
    variants = {each.name: each for each in known}
    refusals = [*_evaluated_variants(config, variants), *_training_variant(config, variants)]
    yield from refusals or _instances(config, env)


def _in_time(config: Config, what: str, work: Callable[[], T]) -> T:
    """As the rollouts ask it. Raises RolloutError when the environment misses its deadline."""
    return within(config.rollout.env_timeout_s, f"the environment {config.env} ({what})", work)


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
        elif len(evaluation_name(iteration_name(0), name, "sampled")) > _LONGEST_FILE:
            yield refusal(
                "eval_variants", name, "too long for the name of its evaluation's file", "shorten it"
            )
    if len(set(config.eval_variants)) != len(config.eval_variants) or not config.eval_variants:
        yield refusal("eval_variants", config.eval_variants, "empty, or one stands twice", "name each once")


def _instances(config: Config, env: gymnasium.Env[str, str]) -> Iterator[str]:
    """Whether there is anything to train and to evaluate on; closes `env`, unless it hangs."""
    wanted = [("eval_variants", name, "eval") for name in config.eval_variants]
    if config.task in TRAINING:
        wanted.append(("train_variant", config.train_variant, "train"))
    for key, variant, split in wanted:
        reset = partial(env.reset, seed=config.seed, options={"variant": variant, "split": split})
        try:
            _in_time(config, f"reset, split {split}", reset)
        except RolloutError as error:
            yield refusal(key, variant, str(error), _MORE_TIME)
            return
        except Exception as error:  # an environment may raise anything, and would for hours
            yield refusal(key, variant, *_reason_and_remedy(error, f"see python -m envs.check {config.env}"))
    env.close()


def _training_variant(config: Config, variants: dict[str, VariantInfo]) -> Iterator[str]:
    allowed = "choose from " + ", ".join(name for name, variant in variants.items() if not variant.held_out)
    name = config.train_variant
    if name not in variants:
        yield refusal("train_variant", name, f"{config.env} has no such variant", allowed)
    elif config.task in TRAINING and variants[name].held_out:
        yield refusal("train_variant", name, "it is held out: only for evaluation", allowed)
