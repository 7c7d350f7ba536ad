"""Settings of streaming: what is refused, and why."""

from __future__ import annotations

import pytest

from rlpost import run
from rlpost.config.schema import OnSwap
from rlpost.errors import ConfigError

GRPO = "experiment=navigation_grpo"
AHEAD = "rollout.max_staleness=2"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rollout.max_staleness=-1"], "rollout.max_staleness=-1\n  reason: out of range"),
        ([AHEAD, "rollout.policy=start", "algo.kl=none"], "with rollout.policy=start the engines take no"),
        ([AHEAD, "budget.amounts=[1e12]"], "a budget ends a run while episodes are being played ahead"),
        ([AHEAD, "task=compare"], "a budget ends a run while episodes are being played ahead"),
        ([AHEAD, "task=sft"], "rollout.max_staleness=2\n  reason: nothing reads it: only task=rl plays"),
        (
            ["rollout.on_swap=drain"],
            "rollout.on_swap=drain\n  reason: nothing reads it: rollout.max_staleness=0",
        ),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run.prepare([GRPO, *overrides])
    assert told in str(caught.value)


def test_what_streaming_allows() -> None:
    cfg = run.prepare([GRPO, AHEAD, "rollout.on_swap=drain", "eval.every=2"])
    assert (cfg.rollout.max_staleness, cfg.rollout.on_swap) == (2, OnSwap.drain)
