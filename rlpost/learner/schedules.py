"""Learning rates by optimizer step: linear warm-up, then constant, or down to a share of the peak at the last step."""

from __future__ import annotations

import math

from rlpost.algorithms.roles import CRITIC, POLICY
from rlpost.config.schema import AlgoConfig, RateSchedule, SftConfig


def scheduled(peak: float, step: int, total: int, cfg: SftConfig | AlgoConfig) -> float:
    """The learning rate of `step`, which counts from 0, of `total` optimizer steps.

    It rises linearly from peak / warmup_steps at step 0 to `peak` at the last step of the warm-up. With a schedule it
    then falls, and reaches peak x final_share at step total - 1. It is 0 before step 0.
    """
    if step < 0:
        return 0.0
    warmup = max(1, cfg.warmup_steps)
    risen = peak * min(1.0, (step + 1) / warmup)
    if cfg.schedule is RateSchedule.constant or step < warmup:
        return risen
    progress = min(1.0, (step + 1 - warmup) / (total - warmup))
    left = 1.0 - progress if cfg.schedule is RateSchedule.linear else (1.0 + math.cos(math.pi * progress)) / 2
    return peak * (cfg.final_share + (1.0 - cfg.final_share) * left)


def steps_an_iteration(algo: AlgoConfig) -> dict[str, int]:
    """The optimizer steps of each role in one iteration. Few groups may make fewer; numbers are skipped then."""
    return {
        POLICY: algo.epochs * algo.minibatches,
        CRITIC: (algo.critic_epochs or algo.epochs) * algo.minibatches,
    }


def rl_rates(algo: AlgoConfig, iteration: int, step: int) -> dict[str, float]:
    """The learning rates of both roles at an iteration's `step`. The policy's steps begin after the critic's warm-up.

    The schedules end with `algo.iterations`, so a resumed run with more iterations continues on the longer schedule.
    """
    steps = steps_an_iteration(algo)
    policy, critic = iteration - algo.critic_warmup, iteration
    return {
        POLICY: scheduled(
            algo.learning_rate,
            policy * steps[POLICY] + step,
            (algo.iterations - algo.critic_warmup) * steps[POLICY],
            algo,
        ),
        CRITIC: scheduled(
            algo.critic_learning_rate,
            critic * steps[CRITIC] + step,
            algo.iterations * steps[CRITIC],
            algo,
        ),
    }


def new_end(algo: AlgoConfig, iterations: int | None) -> str | None:
    """What a resumed run whose record has another number of `iterations` must say; None without a schedule."""
    if algo.schedule is RateSchedule.constant or iterations == algo.iterations:
        return None
    return (
        f"algo.schedule={algo.schedule.name} now ends after {algo.iterations} iterations instead of {iterations}:"
        " the learning rate jumps to that of the new schedule"
    )


def sft_rate(sft: SftConfig, step: int) -> float:
    """The learning rate of an SFT step."""
    return scheduled(sft.learning_rate, step, sft.steps, sft)
