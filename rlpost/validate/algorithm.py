"""Refuses settings of `algo`, its batch and its rollouts that contradict one another or have no effect.

Checks yield refusals (key, value, reason, remedy), like those of rlpost.validate.checks, which calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE, Algorithm, Estimator, Ratio
from rlpost.config.schema import Config, KlEstimator, KlPlace, Rewards, Task
from rlpost.envs.errors import Refused
from rlpost.errors import RolloutError
from rlpost.rollout.env_threads import within
from rlpost.rollout.reward_function import DEADLINE, load
from rlpost.validate.environment import TRAINING
from rlpost.validate.own_answers import rollout_policy, selection
from rlpost.validate.rollout_correction import CORRECTION_CHECKS
from rlpost.validate.teacher import TEACHER_CHECKS


def _batch(config: Config) -> Iterator[str]:
    """Refusals unless groups and minibatches fit the batch, and every rank and worker has work."""
    rollout, parts = config.rollout, config.algo.minibatches * config.learner.workers
    if rollout.group_size >= 1 and rollout.episodes % rollout.group_size:
        yield refusal(
            "rollout.episodes",
            rollout.episodes,
            f"not a multiple of rollout.group_size={rollout.group_size}, so a group would be torn",
            "give a multiple",
        )
    groups = rollout.episodes // max(1, rollout.group_size)
    if config.algo.minibatches > groups:
        yield refusal(
            "algo.minibatches",
            config.algo.minibatches,
            f"there are {groups} groups of rollout.group_size={rollout.group_size}, and groups stay whole",
            "fewer minibatches, or more rollout.episodes",
        )
    if rollout.episodes < parts:
        yield refusal(
            "rollout.episodes",
            rollout.episodes,
            f"algo.minibatches={config.algo.minibatches} on learner.workers={config.learner.workers} "
            f"need at least {parts} episodes",
            "more episodes or fewer minibatches",
        )
    if rollout.episodes < rollout.workers:
        yield refusal(
            "rollout.workers", rollout.workers, f"only {rollout.episodes} episodes to share", "fewer workers"
        )


def _lengths(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.max_new_tokens >= rollout.max_model_len:
        yield refusal(
            "rollout.max_new_tokens",
            rollout.max_new_tokens,
            f"an answer of that length fills rollout.max_model_len={rollout.max_model_len}: no room for a prompt",
            "lower it, or raise rollout.max_model_len",
        )
    if config.task in TRAINING and config.learner.micro_batch_tokens < rollout.max_model_len:
        yield refusal(
            "learner.micro_batch_tokens",
            config.learner.micro_batch_tokens,
            f"no pass could take an episode as long as rollout.max_model_len={rollout.max_model_len}",
            "raise it, or lower rollout.max_model_len",
        )


def _deadlines(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.env_timeout_s >= rollout.timeout_s:
        yield refusal(
            "rollout.env_timeout_s",
            rollout.env_timeout_s,
            f"the worker's own deadline, rollout.timeout_s={rollout.timeout_s:g}, would end the run first",
            "give less, or more to rollout.timeout_s",
        )


def _groups(config: Config) -> Iterator[str]:
    row, algo, size = TABLE[config.algo.name], config.algo, config.rollout.group_size
    if size != 1:
        return
    if row.grouped:
        yield refusal(
            "rollout.group_size",
            size,
            f"algo={algo.name.name} compares the episodes of a group, and one alone teaches nothing",
            "give at least 2 (usual: 4 to 16), or choose an algorithm without groups: algo=ppo, algo=reinforce_pp",
        )
    if algo.dynamic_sampling:
        yield refusal(
            "algo.dynamic_sampling",
            True,
            "with rollout.group_size=1 no group has variance, so every one would be replaced",
            "raise rollout.group_size, or set it to false",
        )


def _critic(config: Config) -> Iterator[str]:
    algo = config.algo
    if TABLE[algo.name].critic:
        if algo.critic_warmup >= algo.iterations:
            yield refusal(
                "algo.critic_warmup",
                algo.critic_warmup,
                f"the policy would learn in none of algo.iterations={algo.iterations}",
                "lower it, or raise algo.iterations",
            )
        return
    reason = f"algo={algo.name.name} has no critic"
    if algo.critic_warmup:
        yield refusal("algo.critic_warmup", algo.critic_warmup, reason, "set it to 0")
    if algo.critic_epochs is not None:
        yield refusal("algo.critic_epochs", algo.critic_epochs, reason, "leave it out")


def _clip(config: Config) -> Iterator[str]:
    algo, row = config.algo, TABLE[config.algo.name]
    high = algo.clip if algo.clip_high is None else algo.clip_high
    if algo.ratio_ceiling is not None and algo.ratio_ceiling <= 1.0 + high:
        yield refusal(
            "algo.ratio_ceiling",
            algo.ratio_ceiling,
            f"it lies within the clip, which ends at {1.0 + high:g}",
            "raise it, or leave it out",
        )
    if row.ratio is not Ratio.turn and algo.thought_weight != 1.0:
        yield refusal(
            "algo.thought_weight",
            algo.thought_weight,
            f"algo={algo.name.name} does not take its ratio over a turn, so no token weighs more in it",
            "set it to 1, or algo=ppo_turn",
        )
    elif algo.thought_weight != 1.0 and config.rollout.answer_marker is None:
        yield refusal(
            "algo.thought_weight",
            algo.thought_weight,
            "rollout.answer_marker is null: nothing tells thought from answer",
            "name the text with which the answer begins, or set it to 1",
        )


def _marker(config: Config) -> Iterator[str]:
    if config.rollout.answer_marker == "":
        yield refusal("rollout.answer_marker", "''", "every answer begins with it", "give some text, or null")


def _divergence(config: Config) -> Iterator[str]:
    algo = config.algo
    if algo.kl is KlPlace.loss and algo.kl_estimator is KlEstimator.k1:
        yield refusal(
            "algo.kl_estimator",
            "k1",
            "with algo.kl=loss its gradient is that of the log-prob, whose mean is 0: noise and no penalty",
            "algo.kl_estimator=k2 or k3, or algo.kl=reward",
        )
    if algo.kl_target is None:
        return
    if algo.kl is KlPlace.none:
        yield refusal(
            "algo.kl_target",
            algo.kl_target,
            "algo.kl=none: there is nothing to steer",
            "algo.kl=reward or loss",
        )
    elif algo.kl_coef == 0:
        yield refusal("algo.kl_coef", 0, "steering multiplies it, and 0 stays 0", "start above 0")


def _rewards(config: Config) -> Iterator[str]:
    algo, row = config.algo, TABLE[config.algo.name]
    if algo.rewards is Rewards.turn and not _takes_turns(row):
        yield refusal(
            "algo.rewards",
            "turn",
            f"algo={algo.name.name} compares whole episodes, each with one score",
            "algo.rewards=outcome, which sums an episode's rewards",
        )
    if (
        algo.normalize_rewards
        and row.estimator is Estimator.group_normalized
        and algo.kl is not KlPlace.reward
    ):
        yield refusal(
            "algo.normalize_rewards",
            True,
            f"algo={algo.name.name} divides by each group's deviation, so a common factor changes nothing",
            "set it to false",
        )
    if algo.overlong_buffer > config.rollout.max_new_tokens:
        yield refusal(
            "algo.overlong_buffer",
            algo.overlong_buffer,
            f"longer than rollout.max_new_tokens={config.rollout.max_new_tokens}",
            "give a part of it, such as a fifth",
        )


def _takes_turns(row: Algorithm) -> bool:
    """Whether the advantage may differ between turns; not with one ratio per episode or with leave-one-out."""
    return row.ratio in (Ratio.token, Ratio.turn) and row.estimator is not Estimator.leave_one_out


def _of_learning(check: Callable[[Config], Iterator[str]]) -> Callable[[Config], Iterator[str]]:
    """The check, for task=rl alone; other tasks do not read these settings."""

    def checked(config: Config) -> Iterator[str]:
        if config.task is Task.rl:
            yield from check(config)

    return checked


def _reward_function(config: Config) -> Iterator[str]:
    """Refusals if the user's reward function cannot be imported and called, for tasks that use it and dry runs."""
    reference = config.algo.reward_function
    if reference is None or config.task not in (Task.rl, Task.compare, Task.dry_run):
        return
    key, timeout_s = "algo.reward_function", config.rollout.timeout_s
    try:
        within(timeout_s, f"importing {reference}", partial(load, reference), DEADLINE)
    except RolloutError as error:
        yield refusal(key, reference, str(error), "load what is slow when the function is first called")
    except Refused as error:
        yield refusal(key, reference, error.reason, error.remedy)


ALGORITHM_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _batch,
    _lengths,
    _deadlines,
    _marker,
    _reward_function,
    *map(
        _of_learning,
        (
            _groups,
            _critic,
            _clip,
            _divergence,
            _rewards,
            selection,
            rollout_policy,
            *CORRECTION_CHECKS,
            *TEACHER_CHECKS,
        ),
    ),
)
