"""Learning rates by step: points by hand, and what holds for every schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.algorithms.roles import CRITIC, POLICY
from rlpost.config.schema import AlgoConfig, RateSchedule, SftConfig
from rlpost.learner.schedules import new_end, rl_rates, scheduled, sft_rate


def _sft(schedule: RateSchedule, warmup_steps: int, final_share: float = 0.0, steps: int = 8) -> SftConfig:
    return SftConfig(
        steps=steps,
        learning_rate=1.0,
        warmup_steps=warmup_steps,
        schedule=schedule,
        final_share=final_share,
    )


def test_warm_up_is_linear_then_constant() -> None:
    cfg = _sft(RateSchedule.constant, 4)
    assert [scheduled(1.0, s, 8, cfg) for s in (-1, 0, 1, 3, 4, 99)] == [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]
    assert scheduled(1.0, 0, 8, _sft(RateSchedule.constant, 0)) == 1.0


def test_linear_by_hand() -> None:
    cfg = _sft(RateSchedule.linear, 4, final_share=0.2)
    assert [sft_rate(cfg, step) for step in range(8)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_cosine_by_hand() -> None:
    cfg = _sft(RateSchedule.cosine, 4, final_share=0.5)
    root = math.sqrt(0.5)
    fall = [0.5 + 0.25 * (1 + root), 0.75, 0.5 + 0.25 * (1 - root), 0.5]
    assert [sft_rate(cfg, step) for step in range(4, 8)] == pytest.approx(fall)


@given(
    st.sampled_from([RateSchedule.linear, RateSchedule.cosine]),
    st.integers(0, 20),
    st.integers(1, 60),
    st.floats(0.0, 1.0),
    st.floats(1e-6, 1.0),
)
def test_rises_to_the_peak_and_falls_to_the_final_share(
    schedule: RateSchedule, warmup: int, more: int, final: float, peak: float
) -> None:
    steps = max(1, warmup) + more
    cfg = _sft(schedule, warmup, final, steps)
    rates = [scheduled(peak, step, steps, cfg) for step in range(steps)]
    top = max(1, warmup) - 1
    assert all(0.0 < rate <= peak for rate in rates[:-1])
    assert rates[top] == peak
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 * peak for a, b in pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(peak * final, rel=1e-9, abs=1e-15)
    assert scheduled(peak, steps + 5, steps, cfg) == rates[-1]


def test_policy_and_critic_end_together_and_begin_apart() -> None:
    """Ten iterations, two of them the critic's alone, two steps an iteration for the policy and four for the critic."""
    algo = AlgoConfig(
        iterations=10,
        epochs=1,
        minibatches=2,
        critic_epochs=2,
        critic_warmup=2,
        warmup_steps=2,
        learning_rate=1.0,
        critic_learning_rate=2.0,
        schedule=RateSchedule.linear,
    )
    assert rl_rates(algo, 1, 0)[POLICY] == 0.0
    assert rl_rates(algo, 2, 0)[POLICY] == 0.5
    assert rl_rates(algo, 2, 1)[POLICY] == 1.0
    assert rl_rates(algo, 5, 1)[POLICY] == pytest.approx(1 - 6 / 14)
    assert rl_rates(algo, 0, 1)[CRITIC] == 2.0
    assert rl_rates(algo, 3, 1)[CRITIC] == pytest.approx(2 * (1 - 12 / 38))
    assert rl_rates(algo, 5, 0)[CRITIC] == pytest.approx(2 * (1 - 19 / 38))
    assert rl_rates(algo, 9, 1)[POLICY] == rl_rates(algo, 9, 3)[CRITIC] == 0.0


def test_a_resumed_run_with_more_iterations_says_that_the_rate_jumps() -> None:
    algo = AlgoConfig(iterations=20, schedule=RateSchedule.cosine)
    told = new_end(algo, 10)
    assert told is not None
    assert "algo.schedule=cosine now ends after 20 iterations instead of 10" in told
    assert new_end(algo, 20) is None
    assert new_end(AlgoConfig(iterations=20), 10) is None
