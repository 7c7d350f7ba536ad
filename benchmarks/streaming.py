"""Synchronous against streaming rollouts where the environment is slow: whole runs, in turns.

    python -m benchmarks.streaming [overrides ...] [--rounds 3] [--iterations 20] [--staleness 2] [--episodes 24]
        [--turns 3]

Claim: with environments that take 0.2 to 5 s a step, most of them short, playing ahead comes to equal success in half
of the time. A batch that is played in turn lasts as long as its slowest episode; streaming fills that time with
episodes of later iterations. But it learns from older answers, so it needs more iterations: it is given twice as many.
Success counts as reached when the mean reward of SMOOTHED iterations is REACHED of each turn. The first iteration warms
up and does not count.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from benchmarks.runs import ITERATIONS_ONLY, Run, run
from benchmarks.timing import spread
from rlpost.envs.terminal import plain_console

SHORTEST_S, LONGEST_S, TAIL = (
    0.2,
    5.0,
    1.2,
)  # seconds of a step: Pareto with this exponent, cut at the longest
REACHED = 0.8  # of the reward of 1 that each right turn has
SMOOTHED = 3


class Slow(gymnasium.Env[str, str]):
    """Asks for a digit in every turn, and thinks for a heavy-tailed time before each reply."""

    observation_space = Text(100)
    action_space = Text(1000)

    def __init__(self, turns: int = 3) -> None:
        self._turns = turns

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._dice, self._turn, self._right = random.Random(seed), 0, 0
        self._digit = str(self._dice.randrange(10))
        return f"Say {self._digit}.", {"instance": str(seed)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(min(LONGEST_S, SHORTEST_S * self._dice.paretovariate(TAIL)))
        self._turn += 1
        right = self._digit in action
        self._right += right
        over = self._turn == self._turns
        info = {"outcome": "RIGHT" if right else "WRONG", "success": self._right == self._turns}
        return f"Again: {self._digit}.", float(right), over, False, info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3, help="of an episode")
    parser.add_argument("overrides", nargs="*", help="further settings of both sides")
    args = parser.parse_args()
    console = plain_console()
    wanted = REACHED * args.turns
    iterations, success = list[float](), list[float]()  # ratios
    for number in range(args.rounds):
        common = [f"env_args.turns={args.turns}", *args.overrides, f"seed={number}"]
        in_turn = side(0, args.iterations, args.episodes, common)
        console.print(f"round {number}, rollout.max_staleness=0: {told(in_turn, wanted)}", soft_wrap=True)
        ahead = side(args.staleness, 2 * args.iterations, args.episodes, common)
        console.print(
            f"round {number}, rollout.max_staleness={args.staleness}: {told(ahead, wanted)}", soft_wrap=True
        )
        iterations.append(statistics.fmean(in_turn.seconds()) / statistics.fmean(ahead.seconds()))
        success.append(reached(in_turn, wanted) / reached(ahead, wanted))
    console.print(f"synchronous / streaming, seconds of an iteration: {spread(iterations)}")
    console.print(f"synchronous / streaming, seconds to a reward of {wanted:g}: {spread(success)}")


def side(bound: int, iterations: int, episodes: int, further: Sequence[str]) -> Run:
    return run(
        [
            *("experiment=own_ppo", "algo=grpo", "env=benchmarks.streaming:Slow", *ITERATIONS_ONLY),
            *("eval.start=false", "rollout.workers=1", "rollout.max_new_tokens=8", "rollout.group_size=4"),
            *(f"rollout.episodes={episodes}", f"rollout.max_num_seqs={episodes}", *further),
            *(f"algo.iterations={iterations}", f"rollout.max_staleness={bound}"),
            f"learner.threads={1 if bound else 2}",  # ahead, the engine has the other core
        ]
    )


def reached(side: Run, wanted: float) -> float:
    """The seconds of the iterations, without the first, until this reward is reached; infinite if it never is."""
    rewards = [line["reward"] for line in side.iterations]
    for end in range(SMOOTHED, len(rewards) + 1):
        if statistics.fmean(rewards[end - SMOOTHED : end]) >= wanted:
            return sum(side.seconds()[: end - 1])
    return math.inf


def told(side: Run, wanted: float) -> str:
    """The seconds of an iteration, and the reward of the run's second half."""
    late = side.iterations[len(side.iterations) // 2 :]
    reward = statistics.fmean(line["reward"] for line in late)
    waits = statistics.fmean(side.seconds("rollout"))
    parts = [
        f"{spread(side.seconds())} s an iteration",
        f"{waits:.2f} s of it waiting",
        f"reward {reward:.2f} in the second half",
        f"{reached(side, wanted):.0f} s to {wanted:g}",
    ]
    if "staleness/mean" in side.iterations[0]:
        parts.append(f"staleness {statistics.fmean(line['staleness/mean'] for line in late):.2f}")
        parts.append(f"engines idle {statistics.fmean(line['streaming/engines_idle'] for line in late):.0%}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
