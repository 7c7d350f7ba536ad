"""An iteration of the main job with 1, 4 and 16 times the episodes, compared with linear scaling.

    python -m benchmarks.scaling [--episodes 64] [--iterations 4] [overrides ...]

The line is scaled from the iteration with the fewest episodes: a ratio of 1.05 is 5% above it. Memory is the peak of
the private memory of all processes of the run.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.runs import ITERATIONS_ONLY, Run, run
from benchmarks.timing import spread

FACTORS = (1, 4, 16)
PARTS = ("rollout", "logprobs", "update", "swap")
QUIET = (
    "experiment=generalpoints_ppo",
    "algo.critic_warmup=1",
    *ITERATIONS_ONLY,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=64, help="of the smallest iteration")
    parser.add_argument("--iterations", type=int, default=4, help="of each run; the first does not count")
    parser.add_argument("overrides", nargs="*", help="further settings of the runs")
    args = parser.parse_args()
    line = 0.0
    for factor in FACTORS:
        episodes = factor * args.episodes
        found = run(
            [*QUIET, f"rollout.episodes={episodes}", f"algo.iterations={args.iterations}", *args.overrides],
            memory=True,
        )
        line = line or statistics.median(found.seconds())
        print(_row(episodes, found, line * factor), flush=True)


def _row(episodes: int, found: Run, line: float) -> str:
    parts = ", ".join(f"{part} {statistics.median(found.seconds(part)):.2f}" for part in PARTS)
    ratio = spread([seconds / line for seconds in found.seconds()])
    memory = f"{found.peak_gib:.2f} GiB"
    return f"{episodes} episodes: {spread(found.seconds())} s ({parts}); of the line {ratio}; memory {memory}"


if __name__ == "__main__":
    main()
