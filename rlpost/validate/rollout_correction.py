"""Refuses corrections for the policy that played (weights, rejection, trust region, lag) that contradict a run."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE, Ratio
from rlpost.config.rollout_correction import importance_weights
from rlpost.config.schema import Config, OldLogprobs, RolloutIS, RolloutPolicy, RolloutReject, TrustRegion


def corrections(config: Config) -> Iterator[str]:
    """Refusals of corrections where nothing is left to correct, and of a rejection without a bound."""
    algo, row = config.algo, TABLE[config.algo.name]
    chosen = {
        "algo.rollout_is": (importance_weights(config).name, RolloutIS.none.name),
        "algo.rollout_reject": (algo.rollout_reject.name, RolloutReject.none.name),
    }
    for key, (value, off) in chosen.items():
        if value == off:
            continue
        if row.selects:
            yield refusal(
                key,
                value,
                f"algo={algo.name.name} fits answers whoever sampled them, and takes no probability ratio",
                f"{key}={off}",
            )
        elif algo.old_logprobs is OldLogprobs.engine:
            yield refusal(
                key,
                value,
                "with algo.old_logprobs=engine the ratio itself is that of learner to engine",
                f"{key}={off}, or algo.old_logprobs=learner",
            )
    if algo.rollout_reject is not RolloutReject.none and algo.rollout_reject_cap is None:
        yield refusal(
            "algo.rollout_reject_cap",
            None,
            f"algo.rollout_reject={algo.rollout_reject.name} does not say which sequences are kept",
            "give the largest ratio of a sequence that is kept: 2 of a product, 1.01 to 1.1 of a geometric mean",
        )


def trust_region(config: Config) -> Iterator[str]:
    algo, row = config.algo, TABLE[config.algo.name]
    if row.has_ratio and algo.trust_region is not TrustRegion.ratio and row.ratio is not Ratio.token:
        yield refusal(
            "algo.trust_region",
            algo.trust_region.name,
            f"it is the divergence of a token, and algo={algo.name.name} takes one ratio of several tokens",
            "algo.trust_region=ratio, or an algorithm with a ratio of tokens: algo=grpo",
        )


def lag(config: Config) -> Iterator[str]:
    if config.rollout.lag > 0 and config.rollout.policy is RolloutPolicy.start:
        yield refusal(
            "rollout.lag",
            config.rollout.lag,
            "rollout.policy=start plays every episode with the start, however many updates have passed",
            "rollout.lag=0, or rollout.policy=latest",
        )


CORRECTION_CHECKS = (corrections, trust_region, lag)
