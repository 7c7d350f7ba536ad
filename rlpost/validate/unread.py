"""Refuses settings that the command line names and that nothing in this run reads.

Defaults, and settings that an experiment's file has for another algorithm, are allowed: only settings on the command
line are expected to have an effect in this run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from rlpost.compare.design.plan import arms, learning_of
from rlpost.compare.design.types import row_of
from rlpost.config.adapter_kinds import TABLE as KINDS
from rlpost.config.adapter_starts import STARTS, StartData
from rlpost.config.arms import TABLE as ARMS
from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE, Estimator, Surrogate
from rlpost.config.rollout_correction import importance_weights
from rlpost.config.schema import (
    Config,
    Instances,
    KlPlace,
    LearningRate,
    RateSchedule,
    RewardControl,
    RolloutIS,
    RolloutReject,
    Task,
    TrustRegion,
)
from rlpost.errors import ConfigError


@dataclass(frozen=True)
class _Rule:
    """Settings, when a run reads them, and the refusal if it does not.

    `reason` may contain `{algorithm}` and `{kind}` (of adapter).
    """

    keys: Sequence[str]
    reads: Callable[[Config], bool]
    reason: str
    remedy: str


_LEAVE = "leave it out"


def _clips(cfg: Config) -> bool:
    """Whether the loss clips the ratio. A trust region takes that place, but the clip of a weight (cispo) stays."""
    return (
        cfg.algo.trust_region is TrustRegion.ratio
        or TABLE[cfg.algo.name].surrogate is Surrogate.clipped_weight
    )


def _pays_for_length(cfg: Config) -> bool:
    """Whether the reward of a long answer may be lowered. A control's rewards tell nothing about the answer."""
    return TABLE[cfg.algo.name].reads_rewards and cfg.algo.reward_control is RewardControl.none


# Each algorithm of a comparison reads its own settings. A setting is unread if no algorithm reads it.
ALGORITHM_RULES = (
    _Rule(
        ("lora.start_examples",),
        lambda cfg: STARTS[cfg.lora.start].data is not StartData.none,
        "lora.start reads no examples",
        f"{_LEAVE}, or lora.start=eva, corda or lora_ga",
    ),
    _Rule(
        ("rollout.system_prompt",),
        lambda cfg: cfg.env != "agent",
        "env=agent: the agent says its own messages",
        f"{_LEAVE}, and let the agent say it",
    ),
    _Rule(
        ("algo.gae_lambda", "algo.value_clip", "algo.value_coef"),
        lambda cfg: TABLE[cfg.algo.name].critic,
        "algo={algorithm} has no critic",
        f"{_LEAVE}, or algo=ppo",
    ),
    _Rule(
        ("algo.learning_rate",),
        lambda cfg: cfg.lora.learning_rate is LearningRate.given,
        "lora.learning_rate=auto sets it",
        f"{_LEAVE}, or lora.learning_rate=given",
    ),
    _Rule(
        ("algo.critic_learning_rate",),
        lambda cfg: TABLE[cfg.algo.name].critic and cfg.lora.learning_rate is LearningRate.given,
        "algo={algorithm} has no critic, or lora.learning_rate=auto sets it",
        f"{_LEAVE}, or algo=ppo with lora.learning_rate=given",
    ),
    _Rule(
        ("algo.final_share",),
        lambda cfg: cfg.algo.schedule is not RateSchedule.constant,
        "algo.schedule=constant: the learning rate stays at its peak",
        f"{_LEAVE}, or algo.schedule=linear or cosine",
    ),
    _Rule(
        ("algo.gamma",),
        lambda cfg: not (TABLE[cfg.algo.name].grouped or TABLE[cfg.algo.name].selects),
        "algo={algorithm} compares undiscounted scores within a group, or reads no rewards",
        f"{_LEAVE}, or algo=ppo, algo=reinforce_pp",
    ),
    _Rule(
        ("algo.ratio_ceiling",),
        lambda cfg: TABLE[cfg.algo.name].surrogate is Surrogate.clipped and _clips(cfg),
        "algo={algorithm} has no unclipped term that it could bound, or algo.trust_region takes the clip's place",
        f"{_LEAVE}; algo.clip_high bounds the ratio",
    ),
    _Rule(
        ("algo.clip", "algo.clip_high"),
        lambda cfg: TABLE[cfg.algo.name].has_ratio and _clips(cfg),
        "algo={algorithm} takes no probability ratio to an old policy, or algo.trust_region takes the clip's place",
        f"{_LEAVE}; algo.max_divergence is the bound of algo.trust_region=tv and kl",
    ),
    _Rule(
        ("algo.old_logprobs", "algo.trust_region"),
        lambda cfg: TABLE[cfg.algo.name].has_ratio,
        "algo={algorithm} takes no probability ratio to an old policy",
        _LEAVE,
    ),
    _Rule(
        ("algo.max_divergence",),
        lambda cfg: TABLE[cfg.algo.name].has_ratio and cfg.algo.trust_region is not TrustRegion.ratio,
        "algo.trust_region=ratio, or algo={algorithm} takes no probability ratio",
        f"{_LEAVE}, or algo.trust_region=tv or kl",
    ),
    _Rule(
        ("algo.rewards", "algo.reward_scale", "algo.normalize_rewards"),
        lambda cfg: TABLE[cfg.algo.name].reads_rewards and not TABLE[cfg.algo.name].selects,
        "algo={algorithm} asks which episodes are right or better, or asks its teacher, and not by how much",
        f"{_LEAVE}, or choose an algorithm that learns from rewards: algo=grpo",
    ),
    _Rule(
        ("algo.overlong_buffer",),
        _pays_for_length,
        "algo={algorithm} reads no rewards, or algo.reward_control replaces them",
        _LEAVE,
    ),
    _Rule(
        ("algo.dpo_beta",),
        lambda cfg: TABLE[cfg.algo.name].estimator is Estimator.pairs,
        "algo={algorithm} learns from no pairs of answers",
        f"{_LEAVE}, or algo=dpo",
    ),
    _Rule(
        ("algo.kl_coef", "algo.kl_estimator"),
        lambda cfg: cfg.algo.kl is not KlPlace.none,
        "algo.kl=none",
        f"{_LEAVE}, or algo.kl=reward or loss",
    ),
    _Rule(
        ("algo.reference",),
        lambda cfg: cfg.algo.kl is not KlPlace.none or TABLE[cfg.algo.name].estimator is Estimator.pairs,
        "algo.kl=none",
        f"{_LEAVE}, or algo.kl=reward or loss",
    ),
    _Rule(
        ("algo.kl_step",),
        lambda cfg: cfg.algo.kl_target is not None,
        "algo.kl_target is null: nothing is steered",
        f"{_LEAVE}, or give algo.kl_target",
    ),
    _Rule(
        ("algo.overlong_penalty",),
        lambda cfg: cfg.algo.overlong_buffer > 0 and _pays_for_length(cfg),
        "no answer pays for its length: algo.overlong_buffer=0, algo={algorithm} reads no rewards, or"
        " algo.reward_control replaces them",
        f"{_LEAVE}, or give algo.overlong_buffer, without a control",
    ),
    _Rule(
        ("algo.teacher",),
        lambda cfg: TABLE[cfg.algo.name].taught,
        "algo={algorithm} has no teacher",
        f"{_LEAVE}, or algo=opd",
    ),
    _Rule(
        ("algo.expert_examples",),
        lambda cfg: cfg.algo.expert_coef > 0,
        "algo.expert_coef=0: no expert answer is learnt from",
        f"{_LEAVE}, or give algo.expert_coef",
    ),
    _Rule(
        ("algo.rollout_is_cap", "algo.rollout_is_floor", "algo.rollout_is_level"),
        lambda cfg: importance_weights(cfg) is not RolloutIS.none and TABLE[cfg.algo.name].has_ratio,
        "algo.rollout_is=none (auto is none where the current policy plays)",
        f"{_LEAVE}, or algo.rollout_is=truncate or mask",
    ),
    _Rule(
        ("algo.rollout_reject_cap", "algo.rollout_reject_floor"),
        lambda cfg: cfg.algo.rollout_reject is not RolloutReject.none and TABLE[cfg.algo.name].has_ratio,
        "algo.rollout_reject=none",
        f"{_LEAVE}, or algo.rollout_reject=sequence or geometric",
    ),
    _Rule(
        ("algo.max_refills",),
        lambda cfg: cfg.algo.dynamic_sampling,
        "algo.dynamic_sampling=false: no group is replaced",
        f"{_LEAVE}, or algo.dynamic_sampling=true",
    ),
)

RULES = (
    _Rule(
        (
            *("lora.kind", "lora.settings", "lora.target_modules"),
            *("lora.start", "lora.learning_rate", "learner.optimizer", "learner.lora_plus_ratio"),
        ),
        lambda cfg: cfg.task is not Task.eval,
        "task=eval trains nothing, and takes the adapter as its files say",
        _LEAVE,
    ),
    _Rule(
        ("algo.reward_control",),
        lambda cfg: cfg.task is Task.compare or (cfg.task is Task.rl and TABLE[cfg.algo.name].reads_rewards),
        "only task=rl learns from rewards, and algo={algorithm} reads none; an evaluation shows the environment's",
        _LEAVE,
    ),
    _Rule(
        ("algo.reward_function",),
        lambda cfg: cfg.task is Task.compare or (cfg.task is Task.rl and not TABLE[cfg.algo.name].taught),
        "only task=rl learns from rewards, and algo=opd does not; an evaluation shows the environment's",
        _LEAVE,
    ),
    _Rule(
        ("sft.loss",),
        lambda cfg: (
            cfg.task in (Task.sft, Task.compare)
            or (cfg.task is Task.rl and (cfg.sft.steps > 0 or cfg.algo.expert_coef > 0))
        ),
        "no step learns from expert answers",
        f"{_LEAVE}, or give sft.steps or algo.expert_coef",
    ),
    _Rule(
        ("rollout.policy", "rollout.lag"),
        lambda cfg: cfg.task in (Task.rl, Task.compare),
        "only task=rl plays episodes to train on; an evaluation plays the current policy",
        _LEAVE,
    ),
    _Rule(
        ("rollout.max_staleness",),
        lambda cfg: cfg.task in (Task.rl, Task.compare),
        "only task=rl plays episodes to train on; an evaluation plays the current policy",
        _LEAVE,
    ),
    _Rule(
        ("rollout.on_swap",),
        lambda cfg: cfg.rollout.max_staleness > 0,
        "rollout.max_staleness=0: no turn is being sampled when an update arrives",
        f"{_LEAVE}, or give rollout.max_staleness",
    ),
    _Rule(
        ("rollout.sleep",),
        lambda cfg: cfg.task in (Task.rl, Task.sft, Task.compare),
        "this task has no learner that would take turns with the engines",
        _LEAVE,
    ),
    _Rule(
        ("rollout.max_workers",),
        lambda cfg: cfg.task in (Task.rl, Task.compare),
        "workers are added between iterations of task=rl alone",
        _LEAVE,
    ),
    _Rule(
        ("rollout.recycle_mib",),
        lambda cfg: cfg.task in (Task.rl, Task.compare),
        "workers are replaced between iterations of task=rl alone",
        _LEAVE,
    ),
    _Rule(
        ("sft.learning_rate",),
        lambda cfg: cfg.lora.learning_rate is LearningRate.given,
        "lora.learning_rate=auto sets it",
        f"{_LEAVE}, or lora.learning_rate=given",
    ),
    _Rule(
        ("sft.final_share",),
        lambda cfg: cfg.sft.schedule is not RateSchedule.constant,
        "sft.schedule=constant: the learning rate stays at its peak",
        f"{_LEAVE}, or sft.schedule=linear or cosine",
    ),
    _Rule(
        ("rollout.kv_cache_gib",),
        lambda cfg: cfg.rollout.gpus == 0 and cfg.eval.endpoint is None,
        "it is of engines on CPU, and with rollout.gpus above 0 they run on a GPU; with eval.endpoint there are none",
        f"{_LEAVE}; rollout.gpu_memory_utilization is the GPU's",
    ),
    _Rule(
        ("rollout.gpu_memory_utilization",),
        lambda cfg: cfg.rollout.gpus > 0 and cfg.eval.endpoint is None,
        "it is of engines on a GPU, and with rollout.gpus=0 they run on CPU; with eval.endpoint there are none",
        f"{_LEAVE}; rollout.kv_cache_gib is the CPU's",
    ),
    _Rule(
        ("lora.rank",),
        lambda cfg: KINDS[cfg.lora.kind].rank is not None and cfg.task is not Task.eval,
        "lora.kind={kind} has no size, or task=eval takes the adapter as its files say",
        _LEAVE,
    ),
    _Rule(
        ("lora.alpha",),
        lambda cfg: KINDS[cfg.lora.kind].alpha is not None and cfg.task is not Task.eval,
        "lora.kind={kind} has no scaling, or task=eval takes the adapter as its files say",
        _LEAVE,
    ),
    _Rule(
        ("eval.episodes",),
        lambda cfg: cfg.eval.instances is Instances.drawn,
        "eval.instances=all plays every instance once, however many there are",
        f"{_LEAVE}, or eval.instances=drawn",
    ),
    _Rule(
        ("eval.samples",),
        lambda cfg: cfg.eval.sampled,
        "eval.sampled=false: greedy answers to one instance are all alike",
        f"{_LEAVE}, or eval.sampled=true",
    ),
    _Rule(
        (
            *(
                "model",
                "dtype",
                "lora.base",
                "ray.address",
                "ray.timeout_s",
                "rollout.workers",
                "rollout.max_model_len",
            ),
            *("rollout.template_args", "rollout.cpus", "rollout.gpus", "rollout.enforce_eager"),
            *("rollout.tensor_parallel", "rollout.max_canary_gap", "rollout.restarts", "rollout.min_workers"),
        ),
        lambda cfg: cfg.eval.endpoint is None,
        "it is of engines of this machine, and the model behind eval.endpoint plays",
        f"{_LEAVE}, or leave eval.endpoint out",
    ),
    _Rule(
        ("retention.env", "retention.text"),
        lambda cfg: cfg.task is not Task.eval,
        "task=eval trains nothing",
        f"{_LEAVE}, and evaluate the other environment by env=",
    ),
    _Rule(
        (*(f"retention.{name}" for name in ("env_args", "variants", "episodes", "max_new_tokens")),),
        lambda cfg: cfg.retention.env is not None,
        "retention.env names no environment",
        f"{_LEAVE}, or give retention.env",
    ),
    _Rule(
        ("retention.text_tokens",),
        lambda cfg: cfg.retention.text is not None,
        "retention.text names no text",
        f"{_LEAVE}, or give retention.text",
    ),
    _Rule(
        ("retention.kl_episodes",),
        lambda cfg: cfg.retention.on,
        "neither retention.env nor retention.text is given, so nothing is measured",
        f"{_LEAVE}, or give one of them",
    ),
    _Rule(
        ("ray.placement", "ray.wait_s", "ray.autoscaling"),
        lambda cfg: cfg.ray.address is not None and cfg.eval.endpoint is None,
        "only a run on a joined cluster is placed on nodes and waits for them",
        f"{_LEAVE}, or give ray.address",
    ),
    _Rule(
        ("compare.contrasts",),
        lambda cfg: cfg.task is Task.compare,
        "only the report of task=compare has differences of arms",
        _LEAVE,
    ),
    _Rule(
        ("compare.share_engines",),
        lambda cfg: cfg.task is Task.compare and cfg.ray.address is None,
        "only cells of a comparison on this machine can share engines",
        f"{_LEAVE}, or leave ray.address out",
    ),
    _Rule(
        ("tracking.wandb",),
        lambda cfg: "wandb" in cfg.tracking.backends,
        "tracking.backends does not name wandb",
        f"{_LEAVE}, or add wandb to tracking.backends",
    ),
    _Rule(
        ("tracking.mlflow_uri",),
        lambda cfg: "mlflow" in cfg.tracking.backends,
        "tracking.backends does not name mlflow",
        f"{_LEAVE}, or add mlflow to tracking.backends",
    ),
    _Rule(
        ("tracking.project",),
        lambda cfg: bool({"wandb", "mlflow"} & {*cfg.tracking.backends}),
        "it is of wandb and mlflow, and tracking.backends names neither",
        f"{_LEAVE}, or add one to tracking.backends",
    ),
)


def unread(config: Config, named: Collection[str]) -> Iterator[str]:
    """Refusals of settings among `named` (dotted keys) that this run does not read.

    Yields nothing for task=dry_run, which accepts the command line of any run, and task=tiny_base, which has its own
    settings.
    """
    if config.task not in (Task.dry_run, Task.tiny_base):
        for rule in RULES:
            yield from _refusals(rule, [config], named)
    algorithms = _algorithms(config)  # once: composing every arm takes a fraction of a second
    for rule in ALGORITHM_RULES:
        yield from _refusals(rule, algorithms, named)


def _algorithms(config: Config) -> list[Config]:
    """The configuration under each algorithm that this run trains with."""
    if config.task is Task.rl:
        return [config]
    if config.task is not Task.compare:
        return []
    named = config.compare.arms
    if not all(arm in ARMS for arm in named) or not any(ARMS[arm].may_set_budget for arm in named):
        return []  # rlpost.validate.comparison refuses this
    try:
        return [learning_of(config, arm) for arm in arms(config) if not row_of(arm).supervised]
    except ConfigError:
        return []  # and this: a setting of compare.settings that there is not


def _refusals(rule: _Rule, configs: Sequence[Config], named: Collection[str]) -> Iterator[str]:
    if not configs or any(rule.reads(config) for config in configs):
        return
    reasons = dict.fromkeys(
        rule.reason.format(algorithm=config.algo.name.name, kind=config.lora.kind.name) for config in configs
    )
    for key in (key for key in rule.keys if key in named):
        value = functools.reduce(getattr, key.split("."), configs[0])
        told = value.name if isinstance(value, Enum) else value
        yield refusal(key, told, f"nothing reads it: {', '.join(reasons)}", rule.remedy)
