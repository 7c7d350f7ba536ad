"""Refuses impossible comparisons and budgets. rlpost.validate.checks has the checks that every run shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from rlpost.compare.design.plan import (
    arms,
    learning_of,
    named_contrasts,
    plan,
    quickened,
    settings_of,
    starts,
)
from rlpost.compare.design.types import INIT, is_start, row_of, settings_name_of
from rlpost.config.arms import SFT
from rlpost.config.arms import TABLE as ARMS
from rlpost.config.compose import with_settings
from rlpost.config.keys import did_you_mean, refusal
from rlpost.config.presets import VARIED
from rlpost.config.schema import AlgoName, Config, Measure, RewardControl, SftLoss, Task
from rlpost.envs import registry
from rlpost.envs.base import has_own_rule
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.errors import ConfigError
from rlpost.validate.algorithm import ALGORITHM_CHECKS

# Settings in which arms may differ, by how their names begin; and those among them that a comparison sets itself.
_VARIABLE = ("lora.", "sft.", "algo.", "learner.", "rollout.lag")
_FIXED = ("algo.name", "algo.iterations", "sft.skip")


def _budget(config: Config) -> Iterator[str]:
    amounts = config.budget.amounts
    if any(amount <= 0 for amount in amounts) or any(a >= b for a, b in pairwise(amounts)):
        remedy = "give them in order"
        if config.budget.measure is Measure.correct_rollouts:
            remedy += (
                "; the reference solved nothing between two points: fewer compare.points, or another match_on"
            )
        yield refusal("budget.amounts", amounts, "they must be above 0 and rise", remedy)
    if amounts and config.task not in (Task.rl, Task.sft):
        yield refusal("budget.amounts", amounts, f"task={config.task.name} has no budget", "leave it out")


def _arms(config: Config) -> Iterator[str]:
    arms = config.compare.arms
    for arm in arms:
        if arm not in ARMS:
            remedy = did_you_mean(arm, list(ARMS)) or "choose from " + ", ".join(ARMS)
            yield refusal("compare.arms", arm, "there is no such arm", remedy)
    if len(set(arms)) != len(arms):
        yield refusal("compare.arms", arms, "one stands twice", "name each once")
    if not any(ARMS[arm].may_set_budget for arm in arms if arm in ARMS):
        algorithms = ", ".join(name.name for name in AlgoName)
        reason = "no algorithm among them, whose compute is the budget; a control's never is"
        yield refusal("compare.arms", arms, reason, f"add one of {algorithms}")


def _contrasts(config: Config) -> Iterator[str]:
    try:
        pairs = named_contrasts(config)
    except ValueError as error:
        reason, remedy = "it is no difference of two arms", "write it so: [opd - grpo]"
        yield refusal("compare.contrasts", error, reason, remedy)
        return
    known = arms(config)
    for arm, baseline in pairs:
        name = f"{arm} - {baseline}"
        unknown = [side for side in (arm, baseline) if side not in known]
        if unknown:
            reason = f"{unknown[0]} is no arm of this comparison; each is compared with init anyway"
            yield refusal("compare.contrasts", name, reason, "choose two of " + ", ".join(known))
        elif arm == baseline:
            yield refusal("compare.contrasts", name, "an arm does not differ from itself", "name two arms")


def _settings(config: Config) -> Iterator[str]:
    for name, settings in config.compare.settings.items():
        if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", name):
            yield refusal(
                "compare.settings", name, "a name becomes part of a folder's", "use letters, digits and _"
            )
        yield from _named_settings(config, name, settings)


def _named_settings(config: Config, name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    key = f"compare.settings.{name}"
    for setting, value in settings.items():
        if not setting.startswith(_VARIABLE) or setting in _FIXED:
            yield refusal(
                f"{key}: {setting}",
                value,
                "arms may differ in how they learn, and play the same episodes",
                f"give settings of {', '.join(_VARIABLE)}, without {', '.join(_FIXED)}",
            )
            return
    changes_weights = any(setting.startswith("lora.") for setting in settings)
    own_start = starts(config) != (INIT,)
    if changes_weights and ((config.sft.steps and not own_start) or config.adapter is not None):
        from_adapter = config.adapter is not None
        shared, value = ("adapter", config.adapter) if from_adapter else ("sft.steps", config.sft.steps)
        yield refusal(
            shared,
            value,
            f"all arms start from one adapter, and {key} gives some another kind or shape",
            "start from the bare model: sft.steps=0, no adapter",
        )
    try:
        found = with_settings(config, settings)
    except ConfigError as error:
        yield f"{key}: {error}"
        return
    if found.sft.steps < 0:
        yield refusal(
            f"{key}: sft.steps", found.sft.steps, "a warm start has no such length", "give 0 or more"
        )


def _named(config: Config) -> Iterator[str]:
    for key in config.compare.named:
        if key not in VARIED:
            yield refusal(
                "compare.named",
                key,
                "no algorithm has a default of its own for it",
                "leave it out: arms share it",
            )


def _reward_control(config: Config) -> Iterator[str]:
    control = config.algo.reward_control
    if control is not RewardControl.none:
        yield refusal(
            "algo.reward_control",
            control.name,
            "every algorithm of the comparison would be a control, under its plain name",
            f"leave it out, and add the arms' controls, such as {config.algo.name.name}_{control.name}",
        )


def _sft_loss(config: Config) -> Iterator[str]:
    loss = config.sft.loss
    if SFT in config.compare.arms and loss is not SftLoss.nll:
        yield refusal(
            "sft.loss",
            loss.name,
            f"the arm {SFT} would be trained with it, under its plain name",
            f"leave it out, and add the arm {loss.name}",
        )


def _same_training(config: Config) -> Iterator[str]:
    """Refusals of a setting of the whole comparison that makes an arm what another arm is by its definition."""
    if any(True for check in (_arms, _settings, _sft_loss) for _ in check(config)):
        return
    learning = {arm: learning_of(config, arm) for arm in arms(config)}
    for first, second in combinations(learning, 2):
        kinds = {(settings_name_of(arm), row_of(arm).task) for arm in (first, second)}
        if len(kinds) == 1 and learning[first] == learning[second]:
            defining = dict(row_of(first).settings) | dict(row_of(second).settings)
            yield refusal(
                "compare.arms",
                [first, second],
                "with the settings of this comparison they are the same training under two names",
                f"leave one out, or change what defines it: {', '.join(sorted(defining))}",
            )


def _settings_against_arms(config: Config) -> Iterator[str]:
    """Refusals of named settings that would undo what defines an arm."""
    for name, settings in config.compare.settings.items():
        for arm in (arm for arm in config.compare.arms if arm in ARMS):
            for key in sorted(settings.keys() & ARMS[arm].settings.keys()):
                yield refusal(
                    f"compare.settings.{name}: {key}",
                    settings[key],
                    f"the arm {arm} has {key}={ARMS[arm].settings[key]} by its definition",
                    "leave it out, or leave the arm out",
                )


def _seeds(config: Config) -> Iterator[str]:
    seeds = config.compare.seeds
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        yield refusal("compare.seeds", seeds, "none, one twice, or one below 0", "give some, such as [0,1,2]")


def _match_on(config: Config) -> Iterator[str]:
    compare = config.compare
    alone = compare.concurrency == 1 or (compare.concurrency is None and config.ray.address is None)
    if compare.match_on is Measure.device_seconds and not alone:
        yield refusal(
            "compare.match_on",
            compare.match_on.name,
            "cells that run beside one another slow each other down, so that seconds measure nothing",
            "compare.concurrency=1, or compare.match_on=flops",
        )


def _points(config: Config) -> Iterator[str]:
    quick, points = quickened(config), config.compare.points
    if points > 0 and quick.algo.iterations % points:
        shortened = config.compare.quick and config.compare.quick_iterations <= config.algo.iterations
        key = "compare.quick_iterations" if shortened else "algo.iterations"
        yield refusal(
            "compare.points",
            points,
            f"{key}={quick.algo.iterations} does not divide into so many parts",
            "give a divisor",
        )


def _variants(config: Config) -> Iterator[str]:
    try:
        known = registry.variants(config.env, **config.env_args)
    except (TypeError, ValueError):
        return  # rlpost.validate.environment refuses this
    held_out = {variant.name for variant in known if has_own_rule(variant)}
    scored = config.eval_variants
    if config.train_variant not in {variant.name for variant in known}:
        return  # refused there too
    if config.train_variant not in scored:
        yield refusal("eval_variants", scored, f"{config.train_variant} is not scored", "add train_variant")
    if not held_out & set(scored):
        yield refusal(
            "eval_variants",
            scored,
            "none of them is a held-out rule: nothing shows whether a rule was learnt by heart",
            "add some of " + ", ".join(sorted(held_out)),
        )


def _causes(config: Config) -> Iterator[str]:
    try:
        registry.causes(config.env)
    except UnknownEnvironment:
        return  # rlpost.validate.environment refuses this
    except Refused as error:
        yield refusal("env", config.env, error.reason, error.remedy)


def _every_arm(config: Config) -> Iterator[str]:
    """Refusals of each arm's settings, as rlpost.validate.checks would give them when the arm's runs start."""
    if any(True for check in (_arms, _settings, _seeds, _points) for _ in check(config)):
        return
    already = {text for check in ALGORITHM_CHECKS for text in check(config)}
    quick = quickened(config)
    for cell in plan(quick):
        if cell.seed == quick.compare.seeds[0] and not is_start(cell.arm) and not row_of(cell.arm).supervised:
            found = settings_of(quick, cell, Path(), [])
            for text in (text for check in ALGORITHM_CHECKS for text in check(found)):
                if text not in already:
                    yield f"arm {cell.arm}: {text}"


def _of_comparisons(check: Callable[[Config], Iterator[str]]) -> Callable[[Config], Iterator[str]]:
    """The check, for task=compare alone; other tasks do not read these settings."""

    def checked(config: Config) -> Iterator[str]:
        if config.task is Task.compare:
            yield from check(config)

    return checked


COMPARE_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _budget,
    *map(
        _of_comparisons,
        (
            *(_arms, _settings, _contrasts, _settings_against_arms, _reward_control, _sft_loss),
            *(_same_training, _named, _seeds, _match_on, _points, _variants, _causes, _every_arm),
        ),
    ),
)
