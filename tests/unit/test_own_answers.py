"""Settings of sft.loss, algo=rft, algo=dpo and rollout.policy: what is refused, what is accepted, what is told."""

from __future__ import annotations

import pytest

from rlpost import run
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoConfig, AlgoName, SftLoss
from rlpost.errors import ConfigError
from rlpost.tasks.rl import _without_step
from rlpost.tasks.stall import PATIENCE, Stall
from tests.unit.episodes import episode, turn

PPO = "experiment=generalpoints_ppo"
GRPO = "experiment=navigation_grpo"
START = "rollout.policy=start"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run.prepare([*overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["algo=rft", "algo.kl=loss"], "algo.kl=loss\n  reason: algo=rft learns from chosen answers"),
        (["algo=dpo", "algo.kl=reward"], "algo.kl=reward\n  reason: algo=dpo learns from chosen"),
        (["algo=rft", "algo.whiten_advantages=true"], "algo=rft has advantages of fixed size"),
        (["algo=dpo", "algo.rollout_is=mask"], "algo=dpo fits answers whoever sampled them"),
        (["algo=rft", "algo.dynamic_sampling=true"], "learns from one that is all right"),
        (["algo=rft", "algo.reward_function=json:loads"], "what the environment calls a success"),
        (["algo=dpo", "rollout.group_size=1"], "algo=dpo compares the episodes of a group"),
        (["algo=dpo", "algo.dpo_beta=0"], "algo.dpo_beta=0.0\n  reason: out of range"),
        (["algo=grpo", "algo.dpo_beta=0.2"], "algo=grpo learns from no pairs of answers"),
        (
            ["algo=rft", "algo.reference=base"],
            "algo.reference=base\n  reason: nothing reads it: algo.kl=none",
        ),
        (["algo=rft", "algo.clip=0.1"], "algo=rft takes no probability ratio"),
        (["algo=dpo", "algo.old_logprobs=engine"], "algo=dpo takes no probability ratio"),
        (["algo=rft", "algo.reward_scale=1"], "algo=rft asks which episodes are right or better"),
        (["algo=dpo", "algo.normalize_rewards=true"], "algo=dpo asks which episodes are right or better"),
        (["algo=rft", "algo.gamma=0.9"], "or reads no rewards"),
        (["algo=rft", "algo.overlong_buffer=8"], "algo=rft reads no rewards"),
        (["algo=rft", "algo.gae_lambda=0.9"], "algo=rft has no critic"),
        (["sft.steps=0", "sft.loss=dft"], "no step learns from expert answers"),
        (["task=sft", START], "only task=rl plays episodes to train on"),
        (["algo=grpo", START], "its estimators take tokens that the policy itself sampled"),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(overrides: list[str], told: str) -> None:
    assert told in refused(PPO, *overrides)


@pytest.mark.parametrize(
    "name", [name.name for name in AlgoName if TABLE[name].has_ratio and not TABLE[name].taught]
)
def test_offline_a_ratio_to_the_moved_policy_is_refused_whatever_the_algorithm(name: str) -> None:
    """Its own log-probs, recomputed: with one step the ratio would always be 1, as if on-policy."""
    told = refused(PPO, f"algo={name}", "algo.kl=none", "algo.old_logprobs=learner", START)
    assert f"takes the ratio of algo={name} to the policy as it has moved" in told
    for corrected in ("algo.old_logprobs=engine", "algo.rollout_is=truncate"):
        learner = [] if "engine" in corrected else ["algo.old_logprobs=learner"]
        run.prepare([PPO, f"algo={name}", "algo.kl=none", *learner, corrected, START])


@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=rft"],
        ["algo=dpo"],
        ["algo=rft", START],
        ["algo=dpo", START, "algo.dpo_beta=0.5", "algo.reference=base"],
        ["algo=dpo", "algo.dynamic_sampling=true", "algo.overlong_buffer=8"],
        ["task=sft", "sft.steps=5", "sft.loss=dft"],
        ["sft.steps=5", "sft.loss=dft"],
        ["task=dry_run", "algo=rft"],
        ["task=dry_run", "algo=dpo", START],
    ],
)
def test_what_goes_together_is_accepted(overrides: list[str]) -> None:
    run.prepare([GRPO, *overrides])


def test_arms_of_a_comparison() -> None:
    arms = "arms=[sft,rft,dpo,grpo]"
    cfg = run.prepare(["experiment=navigation_sft_vs_rl", arms, "compare.settings={dft: {sft.loss: dft}}"])
    assert cfg.sft.loss is SftLoss.nll


def batch(success: bool) -> list:  # type: ignore[type-arg]
    return [episode(turn(reward=1.0), success=success)] * 2


def test_rft_stalls_without_successes_only() -> None:
    """Where all are right it learns, though all rewards are equal."""
    stall = Stall(AlgoConfig(name=AlgoName.rft))
    assert [stall.see(batch(True), {"kept_episodes": 0.5}) for _ in range(9)] == [None] * 9
    told = [stall.see(batch(False), {"kept_episodes": 0.0}) for _ in range(PATIENCE)][-1]
    assert told is not None
    assert "no episode succeeded" in told


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"kept_episodes": 0.0}, ["no episode succeeded: the policy took no step"]),
        (
            {"kept_episodes": 0.0, "paired_groups": 0.0},
            ["no group has two different rewards: the policy took no step"],
        ),
        ({"kept_episodes": 0.1}, []),
        ({}, []),
    ],
)
def test_an_iteration_without_a_step_is_told(metrics: dict[str, float], told: list[str]) -> None:
    assert list(_without_step(metrics)) == told
