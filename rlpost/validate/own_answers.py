"""Refuses settings that contradict learning from chosen answers (algo=rft, dpo), or from those of the start."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE, Estimator
from rlpost.config.rollout_correction import importance_weights
from rlpost.config.schema import Config, KlPlace, OldLogprobs, RolloutIS, RolloutPolicy


def selection(config: Config) -> Iterator[str]:
    """Refusals of what algorithms that choose their episodes have no place for."""
    algo, row = config.algo, TABLE[config.algo.name]
    if not row.selects:
        return
    name = f"algo={algo.name.name}"
    if algo.kl is not KlPlace.none:
        yield refusal(
            "algo.kl",
            algo.kl.name,
            f"{name} learns from chosen answers, and the estimators need all that the policy samples",
            "algo.kl=none; dpo keeps near its reference by algo.dpo_beta",
        )
    if algo.whiten_advantages:
        yield refusal(
            "algo.whiten_advantages",
            True,
            f"{name} has advantages of fixed size, which are the gradient of its loss",
            "set it to false",
        )
    if row.estimator is Estimator.success:
        yield from _success(config)


def _success(config: Config) -> Iterator[str]:
    algo = config.algo
    if algo.reward_function is not None:
        yield refusal(
            "algo.reward_function",
            algo.reward_function,
            f"algo={algo.name.name} learns from what the environment calls a success, and reads no reward",
            "leave it out, or algo=dpo, which prefers the higher reward",
        )
    if algo.dynamic_sampling:
        yield refusal(
            "algo.dynamic_sampling",
            True,
            f"it replaces groups of equal rewards, and algo={algo.name.name} learns from one that is all right",
            "set it to false",
        )


def rollout_policy(config: Config) -> Iterator[str]:
    """Refusals of losses that take the start's episodes for the current policy's."""
    algo, row = config.algo, TABLE[config.algo.name]
    if config.rollout.policy is RolloutPolicy.latest:
        return
    corrected = algo.old_logprobs is OldLogprobs.engine or importance_weights(config) is not RolloutIS.none
    if row.has_ratio and not corrected:
        yield refusal(
            "rollout.policy",
            "start",
            f"algo.old_logprobs=learner takes the ratio of algo={algo.name.name} to the policy as it has moved, which"
            " did not sample these answers (with one step an update it is always 1)",
            "algo.old_logprobs=engine, whose ratio is to the start; or algo.rollout_is=truncate",
        )
    if algo.kl is not KlPlace.none:
        yield refusal(
            "algo.kl",
            algo.kl.name,
            "its estimators take tokens that the policy itself sampled, and with rollout.policy=start the start did",
            "algo.kl=none, or rollout.policy=latest",
        )
