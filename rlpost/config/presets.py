"""The table of algorithms. A row gives the estimator, the ratio, the surrogate and the aggregation of one algorithm.

A row also has the settings that differ from the schema's defaults; an experiment's file and the command line override
them. No other module knows an algorithm by name, and this module imports nothing heavy. docs/algorithms.md has the
formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rlpost.config.schema import AlgoName


class Estimator(Enum):
    """How rewards become advantages; see rlpost.algorithms.estimators."""

    gae = "gae"  # a critic's advantages per token
    gae_turn = "gae_turn"  # a critic's advantages per turn
    returns = "returns"  # discounted future rewards without a baseline
    group_normalized = "group_normalized"  # minus the group's mean, divided by its standard deviation
    group_centred = "group_centred"  # minus the group's mean
    leave_one_out = "leave_one_out"  # minus the mean of the group's other members
    success = "success"  # 1 for distinct episodes that succeeded, 0 for others; rewards are not read
    pairs = "pairs"  # the better and the worse episode of each pair within a group
    teacher = "teacher"  # discounted log ratios teacher / policy in place of rewards


class Ratio(Enum):
    """Granularity of the importance ratio: token, turn or episode."""

    token = "token"
    turn = "turn"  # the product over a turn's tokens
    episode = "episode"  # the product over an episode's tokens
    episode_mean = "episode_mean"  # the geometric mean over an episode's tokens


class Surrogate(Enum):
    clipped = "clipped"  # the smaller of plain and clipped ratio times the advantage
    clipped_weight = "clipped_weight"  # log-prob weighted by the clipped ratio, which has no gradient
    logprob = "logprob"  # log-prob times the advantage, without a ratio


class Aggregation(Enum):
    """The weight of a token's term in the loss of a minibatch."""

    tokens = "tokens"  # the same for every token
    turns = "turns"  # the same for every turn
    episodes = "episodes"  # the same for every episode
    constant = "constant"  # 1 / (episodes x rollout.max_new_tokens)
    pairs = "pairs"  # 1 / pairs: the terms of an episode's tokens add up


GROUPED = (
    Estimator.group_normalized,
    Estimator.group_centred,
    Estimator.leave_one_out,
    Estimator.pairs,
)
CRITICS = (Estimator.gae, Estimator.gae_turn)


@dataclass(frozen=True)
class Algorithm:
    source: str
    estimator: Estimator
    ratio: Ratio
    aggregation: Aggregation
    surrogate: Surrogate = Surrogate.clipped
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings by dotted key

    @property
    def critic(self) -> bool:
        return self.estimator in CRITICS

    @property
    def grouped(self) -> bool:
        return self.estimator in GROUPED

    @property
    def selects(self) -> bool:
        """Whether it chooses episodes to learn from. Rewards then matter by their order at most, not by their size."""
        return self.estimator in (Estimator.success, Estimator.pairs)

    @property
    def has_ratio(self) -> bool:
        """Whether the loss has a probability ratio to an old policy, and with it a clip."""
        return self.surrogate is not Surrogate.logprob

    @property
    def reads_rewards(self) -> bool:
        """Whether the rewards of episodes enter the gradient. rft reads which episodes succeeded."""
        return self.estimator not in (Estimator.success, Estimator.teacher)

    @property
    def taught(self) -> bool:
        """Whether it learns from `algo.teacher`, and not from rewards."""
        return self.estimator is Estimator.teacher


_NO_CRITIC: Mapping[str, Any] = {"algo.critic_warmup": 0}
_OUTCOME: Mapping[str, Any] = {**_NO_CRITIC, "algo.rewards": "outcome"}
_GROUP: Mapping[str, Any] = {**_OUTCOME, "algo.whiten_advantages": False, "rollout.group_size": 8}

TABLE: Mapping[AlgoName, Algorithm] = {
    AlgoName.ppo: Algorithm(
        "arXiv 1707.06347, equation 7",
        Estimator.gae,
        Ratio.token,
        Aggregation.tokens,
    ),
    AlgoName.ppo_turn: Algorithm(
        "arXiv 2501.17161 and its published code (GeneralPoints)",
        Estimator.gae_turn,
        Ratio.turn,
        Aggregation.turns,
        defaults={
            "algo.gamma": 0.9,
            "algo.clip": 0.1,
            "algo.value_clip": 0.1,
            "algo.ratio_ceiling": 10.0,
            "algo.kl": "none",
        },
    ),
    AlgoName.grpo: Algorithm(
        "arXiv 2402.03300, equations 3 and 4",
        Estimator.group_normalized,
        Ratio.token,
        Aggregation.episodes,
        defaults={**_GROUP, "algo.kl": "loss", "algo.kl_estimator": "k3", "algo.kl_coef": 0.04},
    ),
    AlgoName.dr_grpo: Algorithm(
        "arXiv 2503.20783, section 3.2",
        Estimator.group_centred,
        Ratio.token,
        Aggregation.constant,
        defaults={**_GROUP, "algo.kl": "none"},
    ),
    AlgoName.rloo: Algorithm(
        "arXiv 2402.14740, section 2.2",
        Estimator.leave_one_out,
        Ratio.episode,
        Aggregation.episodes,
        defaults={**_GROUP, "algo.kl": "reward"},
    ),
    AlgoName.reinforce_pp: Algorithm(
        "arXiv 2501.03262, REINFORCE++",
        Estimator.returns,
        Ratio.token,
        Aggregation.tokens,
        defaults=_OUTCOME,
    ),
    AlgoName.reinforce_pp_baseline: Algorithm(
        "arXiv 2501.03262, REINFORCE++ with baseline",
        Estimator.group_centred,
        Ratio.token,
        Aggregation.tokens,
        defaults={
            **_GROUP,
            "algo.whiten_advantages": True,
            "algo.kl": "loss",
            "algo.kl_estimator": "k2",
        },
    ),
    AlgoName.dapo: Algorithm(
        "arXiv 2503.14476, equations 8 to 13",
        Estimator.group_normalized,
        Ratio.token,
        Aggregation.tokens,
        defaults={
            **_GROUP,
            "algo.kl": "none",
            "algo.clip_high": 0.28,
            "algo.dynamic_sampling": True,
            "algo.overlong_buffer": 16,
        },
    ),
    AlgoName.gspo: Algorithm(
        "arXiv 2507.18071, equations 5 to 7",
        Estimator.group_normalized,
        Ratio.episode_mean,
        Aggregation.episodes,
        defaults={**_GROUP, "algo.kl": "none", "algo.clip": 3e-4, "algo.clip_high": 4e-4},
    ),
    AlgoName.cispo: Algorithm(
        "arXiv 2506.13585, equations 4 and 5",
        Estimator.group_normalized,
        Ratio.token,
        Aggregation.tokens,
        Surrogate.clipped_weight,
        # No lower bound, as in the paper. The upper bound is the ratio cap of 5 that arXiv 2510.13786 found robust.
        defaults={**_GROUP, "algo.kl": "none", "algo.clip": 1.0, "algo.clip_high": 4.0},
    ),
    AlgoName.rft: Algorithm(
        "arXiv 2308.01825 (RFT), 2304.06767 (RAFT), 2203.14465 (STaR)",
        Estimator.success,
        Ratio.token,
        Aggregation.tokens,
        Surrogate.logprob,
        defaults={**_GROUP, "algo.kl": "none"},
    ),
    AlgoName.dpo: Algorithm(
        "arXiv 2305.18290, equation 7",
        Estimator.pairs,
        Ratio.token,
        Aggregation.pairs,
        Surrogate.logprob,
        defaults={**_GROUP, "algo.kl": "none"},
    ),
    AlgoName.opd: Algorithm(
        "On-Policy Distillation (Thinking Machines Lab, 2025); arXiv 2306.13649 with reverse KL",
        Estimator.teacher,
        Ratio.token,
        Aggregation.tokens,
        # A token answers for its own log ratio alone, as published. With gamma 1 the gradient is that of the KL of
        # whole episodes.
        defaults={
            **_NO_CRITIC,
            "algo.gamma": 0.0,
            "algo.whiten_advantages": False,
            "algo.kl": "none",
        },
    ),
}

VARIED = frozenset(key for algorithm in TABLE.values() for key in algorithm.defaults)
"""The settings for which some algorithm has its own default."""
