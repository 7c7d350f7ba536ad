"""Which correction a run makes for answers that another policy sampled than the one that learns."""

from __future__ import annotations

from rlpost.config.presets import TABLE, Ratio
from rlpost.config.schema import Config, OldLogprobs, RolloutIS, RolloutLevel, RolloutPolicy, RolloutReject

LEVELS = {
    RolloutLevel.token: Ratio.token,
    RolloutLevel.turn: Ratio.turn,
    RolloutLevel.sequence: Ratio.episode,
    RolloutLevel.geometric: Ratio.episode_mean,
}


def stale(config: Config) -> bool:
    """Whether updates may lie between the policy that samples an episode and the one that learns from it."""
    return config.rollout.lag > 0 or config.rollout.max_staleness > 0


def importance_weights(config: Config) -> RolloutIS:
    """`algo.rollout_is`, never auto. With auto, stale answers get truncated weights.

    Truncation keeps every token's gradient and bounds its weight. Masks leave out the more tokens, the older the policy
    that played. Without a ratio, or with `algo.old_logprobs=engine`, whose ratio is to the policy that played, there is
    nothing to weigh.
    """
    algo = config.algo
    if algo.rollout_is is not RolloutIS.auto:
        return algo.rollout_is
    weighs = TABLE[algo.name].has_ratio and algo.old_logprobs is OldLogprobs.learner
    return RolloutIS.truncate if stale(config) and weighs else RolloutIS.none


def corrects(config: Config) -> bool:
    """Whether the learner's log-probs of the batch are compared with the engine's before the update."""
    return (
        importance_weights(config) is not RolloutIS.none
        or config.algo.rollout_reject is not RolloutReject.none
    )


def weighs_kl(config: Config) -> bool:
    """Whether a token's KL to the reference counts by current policy / policy that sampled it.

    Stale answers that nothing corrects pass for the current policy's in the KL too. Answers of the start do not:
    offline arms leave the surrogate alone on purpose, but the KL is to be that of the policy that learns.
    """
    if config.rollout.policy is RolloutPolicy.start:
        return True
    return stale(config) and (corrects(config) or config.algo.old_logprobs is OldLogprobs.engine)


def level(config: Config) -> Ratio:
    """The granularity of the importance weights."""
    return LEVELS.get(config.algo.rollout_is_level, TABLE[config.algo.name].ratio)


def weight_bounds(config: Config) -> tuple[float, float]:
    """The smallest and the largest importance weight."""
    algo = config.algo
    floor = 1.0 / algo.rollout_is_cap if importance_weights(config) is RolloutIS.mask else 0.0
    return floor if algo.rollout_is_floor is None else algo.rollout_is_floor, algo.rollout_is_cap


def kept_bounds(config: Config) -> tuple[float, float]:
    """The smallest and the largest ratio of a sequence that is kept, with `algo.rollout_reject`."""
    cap, floor = config.algo.rollout_reject_cap, config.algo.rollout_reject_floor
    assert cap is not None, "rlpost.validate.rollout_correction asks for it"
    return 1.0 / cap if floor is None else floor, cap
