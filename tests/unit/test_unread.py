"""A setting on the command line that nothing in the run reads is refused; the loss tells what is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlpost import run
from rlpost.config.compose import compose, named_by
from rlpost.config.keys import schema
from rlpost.config.presets import TABLE, Ratio
from rlpost.config.schema import (
    AlgoConfig,
    AlgoName,
    Config,
    KlEstimator,
    RolloutIS,
    RolloutLevel,
    Task,
    TrustRegion,
)
from rlpost.errors import ConfigError
from rlpost.validate.unread import ALGORITHM_RULES, RULES, unread
from tests.numerics.test_algorithms import Numbers, _config, _episodes, _whole

PPO = "experiment=generalpoints_ppo"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run.prepare([PPO, *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["algo=grpo", "algo.gae_lambda=0.5"],
            "algo.gae_lambda=0.5\n  reason: nothing reads it: algo=grpo has no critic\n  remedy: leave it out, or",
        ),
        (
            ["algo=dapo", "algo.critic_learning_rate=1"],
            "algo.critic_learning_rate=1.0\n  reason: nothing reads",
        ),
        (["algo=grpo", "algo.gae_lambda=0.95"], "algo.gae_lambda=0.95"),  # the default, but somebody meant it
        (["algo=rloo", "algo.gamma=0.9"], "algo=rloo compares undiscounted scores"),
        (["algo=cispo", "algo.ratio_ceiling=9"], "no unclipped term"),
        (["algo.kl=none", "algo.kl_coef=0.1"], "algo.kl_coef=0.1\n  reason: nothing reads it: algo.kl=none"),
        (
            ["algo=dapo", "algo.reference=base"],
            "algo.reference=base\n  reason: nothing reads it: algo.kl=none",
        ),
        (["algo.kl_step=0.2"], "algo.kl_target is null"),
        (["algo.final_share=0.1"], "algo.schedule=constant: the learning rate stays"),
        (["sft.final_share=0.1"], "sft.schedule=constant: the learning rate stays"),
        (
            ["lora.learning_rate=auto", "algo.learning_rate=1e-3"],
            "algo.learning_rate=0.001\n  reason: nothing reads it: lora.learning_rate=auto sets it",
        ),
        (["lora.learning_rate=auto", "sft.learning_rate=1e-3"], "lora.learning_rate=auto sets it"),
        (["algo.overlong_penalty=2"], "algo.overlong_buffer=0"),
        (["algo.reward_control=random", "algo.overlong_buffer=8"], "algo.reward_control replaces them"),
        (["algo=dapo", "algo.reward_control=random", "algo.overlong_penalty=2"], "reward_control replaces"),
        (["compare.share_engines=true"], "only cells of a comparison on this machine can share engines"),
        (["task=compare", "compare.share_engines=false", "ray.address=auto"], "on this machine"),
        (["algo.rollout_is_cap=3"], "algo.rollout_is=none"),
        (["algo.max_refills=2"], "algo.dynamic_sampling=false"),
        (
            ["algo=grpo", "algo.teacher=tiny"],
            "algo.teacher=tiny\n  reason: nothing reads it: algo=grpo has no",
        ),
        (["algo=opd", "algo.teacher=tiny", "algo.reward_scale=2"], "or asks its teacher"),
        (["algo=opd", "algo.teacher=tiny", "algo.reward_function=m:f"], "and algo=opd does not"),
        (["algo.expert_examples=8"], "algo.expert_coef=0: no expert answer"),
        (
            ["rollout.gpus=0.5", "rollout.kv_cache_gib=2"],
            "rollout.kv_cache_gib=2.0\n  reason: nothing reads it: it is of",
        ),
        (["rollout.gpu_memory_utilization=0.5"], "rollout.kv_cache_gib is the CPU's"),
        (["eval.instances=all", "eval.episodes=64"], "eval.instances=all plays every instance once"),
        (["eval.samples=4", "eval.sampled=false"], "greedy answers to one instance are all alike"),
        (
            ["lora.kind=full", "lora.rank=8"],
            "lora.rank=8\n  reason: nothing reads it: lora.kind=full has no size",
        ),
        (["lora.kind=bitfit", "lora.alpha=8"], "lora.kind=bitfit has no scaling"),
        (["tracking.backends=[]", "tracking.wandb=offline"], "tracking.backends does not name wandb"),
        (["tracking.mlflow_uri='http://h:1'"], "tracking.backends does not name mlflow"),
        (["tracking.backends=[]", "tracking.project=x"], "it is of wandb and mlflow"),
        (["ray.wait_s=5"], "ray.wait_s=5.0\n  reason: nothing reads it: only a run on a joined cluster"),
        (
            ["ray.placement=spread", "ray.autoscaling=true"],
            "ray.autoscaling=True\n  reason: nothing reads it",
        ),
        (["task=eval", "rollout.gpu_memory_utilization=0.5"], "rollout.kv_cache_gib is the CPU's"),
        (
            ["task=compare", "arms=[sft,grpo,rloo]", "algo.gae_lambda=0.5"],
            "nothing reads it: algo=grpo has no critic, algo=rloo has no critic",
        ),
    ],
)
def test_what_nothing_reads_is_refused(overrides: list[str], told: str) -> None:
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ray.address=auto", "ray.wait_s=5", "ray.placement=spread", "ray.autoscaling=true"],
        ["algo=grpo"],  # the experiment's file brings gae_lambda along
        ["algo.gae_lambda=0.5"],
        ["algo=reinforce_pp", "algo.gamma=0.9"],
        ["algo=dapo", "algo.kl=loss", "algo.kl_estimator=k3", "algo.kl_coef=0.1"],
        ["algo=dapo", "algo.max_refills=2", "algo.overlong_penalty=2"],
        ["rollout.gpus=0.5", "rollout.gpu_memory_utilization=0.5"],  # and the file's kv_cache_gib
        ["rollout.kv_cache_gib=2"],
        ["algo=opd", "algo.teacher=tiny", "algo.gamma=0.5"],
        ["algo.expert_coef=0.1", "algo.expert_examples=8"],
        ["task=compare", "arms=[sft,ppo,opd]", "algo.teacher=tiny", "algo.reward_scale=0.3"],
        ["task=compare", "arms=[sft,ppo,grpo]", "algo.gae_lambda=0.5"],
        ["task=dry_run", "algo=grpo", "algo.gae_lambda=0.5", "rollout.gpu_memory_utilization=0.5"],
    ],
)
def test_what_something_reads_and_what_nobody_named_is_not(overrides: list[str]) -> None:
    config = compose([PPO, *overrides])
    assert not list(unread(config, named_by([PPO, *overrides])))


def test_named_settings_of_a_comparison_may_read_what_the_others_do_not() -> None:
    """Some of paper_staleness have a lag, and with it weights."""
    words = ["experiment=paper_staleness", "algo.rollout_is_cap=3"]
    assert not list(unread(compose(words), named_by(words)))
    words[0] = "experiment=navigation_sft_vs_rl"
    [told] = unread(compose(words), named_by(words))
    assert "algo.rollout_is_cap=3.0" in told


def test_rules_name_settings_that_there_are() -> None:
    keys = [key for rule in (*RULES, *ALGORITHM_RULES) for key in rule.keys]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(schema())


def _other(name: str, algo: AlgoConfig) -> Any:
    """Another value of a setting, far enough from what it is to show in the loss."""
    if name == "kl_estimator":
        return KlEstimator.k2 if algo.kl_estimator is KlEstimator.k3 else KlEstimator.k3
    values = {
        "gae_lambda": 0.3,
        "gamma": 0.5,
        "value_clip": 0.01,
        "ratio_ceiling": 1.01,
        "rollout_is_cap": 1.01,
        "rollout_is_floor": 0.99,
        "rollout_is_level": (
            RolloutLevel.token if TABLE[algo.name].ratio is Ratio.episode_mean else RolloutLevel.geometric
        ),
        "trust_region": TrustRegion.tv,
        "max_divergence": 0.001,
        "clip": 0.01,
        "overlong_penalty": 30.0,  # enough to rank a group's episodes anew (dpo)
    }
    return values.get(name, 3.0)


def _loss(cfg: Config) -> tuple[torch.Tensor, ...]:
    # Sampled by a policy near the learner's, so that not every weight of rollout importance sampling is at its cap.
    near = [
        replace(t, turns=tuple(replace(u, logprobs=tuple(x + 2.0 for x in u.logprobs)) for u in t.turns))
        for t in _episodes()
    ]
    episodes, numbers = near, Numbers(near, spread=3.0)
    loss = _whole(numbers, episodes, cfg)
    return loss, *numbers.gradients(loss)


@pytest.mark.parametrize("correction", [RolloutIS.none, RolloutIS.truncate])
@pytest.mark.parametrize("buffer", [0, 3])
@pytest.mark.parametrize("name", AlgoName)
def test_a_setting_is_refused_exactly_where_the_loss_does_not_know_it(
    name: AlgoName, buffer: int, correction: RolloutIS
) -> None:
    in_loss = ["gae_lambda", "value_clip", "value_coef", "gamma", "kl_coef", "kl_estimator", "ratio_ceiling"]
    of_policies = ["rollout_is_cap", "rollout_is_floor", "rollout_is_level", "trust_region", "max_divergence"]
    for setting in [*in_loss, "overlong_penalty", *of_policies]:
        cfg = _config(name)
        cfg.task, cfg.algo.overlong_buffer, cfg.algo.rollout_is = Task.rl, buffer, correction
        before = _loss(cfg)
        setattr(cfg.algo, setting, _other(setting, cfg.algo))
        same = all(torch.equal(a, b) for a, b in zip(before, _loss(cfg), strict=True))
        assert same == bool(list(unread(cfg, {f"algo.{setting}"}))), setting


@pytest.mark.parametrize("region", [TrustRegion.tv, TrustRegion.kl])
@pytest.mark.parametrize("name", [name for name in AlgoName if TABLE[name].ratio is Ratio.token])
def test_a_trust_region_reads_its_bound_in_place_of_the_clip(name: AlgoName, region: TrustRegion) -> None:
    for setting in ("clip", "ratio_ceiling", "max_divergence"):
        cfg = _config(name)
        cfg.task, cfg.algo.trust_region = Task.rl, region
        before = _loss(cfg)
        setattr(cfg.algo, setting, _other(setting, cfg.algo))
        same = all(torch.equal(a, b) for a, b in zip(before, _loss(cfg), strict=True))
        assert same == bool(list(unread(cfg, {f"algo.{setting}"}))), setting
