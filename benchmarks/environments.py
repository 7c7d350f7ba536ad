"""Steps and resets per second of every registered environment on one core, played by its own expert.

    python -m benchmarks.environments [--episodes 300] [--seed 0]

Claim: environments cost under 1% of an iteration. The table gives the milliseconds per episode (one reset and its
steps), and the cost of an iteration of 64 episodes, to be compared with the seconds of an iteration in
docs/results/learner.md.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass

import gymnasium
from rich.table import Table

from rlpost.envs import registry
from rlpost.envs.base import Expert
from rlpost.envs.terminal import plain_console

ITERATION = 64  # episodes


@dataclass(frozen=True)
class Cost:
    """CPU seconds, which exclude other work of the machine."""

    episodes: int
    steps: int
    reset_seconds: float
    step_seconds: float

    @property
    def episode_ms(self) -> float:
        return 1e3 * (self.reset_seconds + self.step_seconds) / self.episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=300, help="of each variant")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = Table(
        "environment", "variant", "resets/s", "steps/s", "ms an episode", f"s in {ITERATION} episodes"
    )
    for name in registry.names():
        for variant in registry.variants(name):
            cost = measure(registry.make(name), variant.name, args.episodes, args.seed)
            table.add_row(
                name,
                variant.name,
                f"{cost.episodes / cost.reset_seconds:.0f}",
                f"{cost.steps / cost.step_seconds:.0f}",
                f"{cost.episode_ms:.2f}",
                f"{1e-3 * ITERATION * cost.episode_ms:.3f}",
            )
    plain_console().print(table)


def measure(env: gymnasium.Env[str, str], variant: str, episodes: int, seed: int) -> Cost:
    """Play episodes with seeds that no other variant uses, so that no cache helps."""
    rng, steps = random.Random(f"{variant}:{seed}"), 0
    teacher = env.unwrapped
    assert isinstance(teacher, Expert)
    resetting = stepping = 0.0
    for _ in range(episodes):
        started = time.process_time()
        env.reset(seed=rng.randrange(2**31), options={"variant": variant, "split": "train"})
        resetting += time.process_time() - started
        answers = [answer for _, answer, _ in teacher.expert(True, rng)]
        started = time.process_time()
        for answer in answers:
            env.step(answer)
        stepping += time.process_time() - started
        steps += len(answers)
    return Cost(episodes, steps, resetting, stepping)


if __name__ == "__main__":
    main()
