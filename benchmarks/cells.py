"""A comparison whose cells share Ray and the engines, one after the other and two at a time, against one whose don't.

    python -m benchmarks.cells [overrides ...] [--repeats 1] [--sides shared two_at_a_time]

All sides are `python -m rlpost.run` with the same settings, in turns. It prints the seconds of whole comparisons,
their ratios, and the seconds of every cell.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.timing import Side, in_turns, ratio

SMALL = (
    "experiment=generalpoints_sft_vs_rl",
    "arms=[sft,grpo]",
    "seeds=[0,1]",
    "dtype=float32",
    "algo.iterations=2",
    "compare.points=1",
    "sft.steps=2",
    "rollout.episodes=32",
    "eval_variants=[faces_10,faces_11_12_13]",
    "eval.episodes=16",
    "tracking.wandb=disabled",
)
SIDES = {
    "shared": ["compare.share_engines=true"],
    "two_at_a_time": ["compare.share_engines=true", "compare.concurrency=2"],
    "separate": ["compare.share_engines=false"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="comparisons of each side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("overrides", nargs="*", help="further settings of all sides")
    args = parser.parse_args()
    found = in_turns(
        {
            name: Side(partial(compare, name, [*SMALL, *args.overrides, *choice]))
            for name, choice in SIDES.items()
            if name in args.sides
        },
        args.repeats,
        warm_ups=0,
    )
    for timing in found.values():
        print(timing)
    first, *others = args.sides
    for name in others:
        print(f"{name} / {first}: {ratio(found[name], found[first])}")
    print(f"load: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


def compare(name: str, overrides: Sequence[str]) -> int:
    """Run a comparison and print the seconds of its cells; returns 1, the number of comparisons."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "comparison"
        command = [sys.executable, "-m", "rlpost.run", *overrides, f"output_dir={folder}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        ended = sorted((folder / "cells").glob("*.json"), key=lambda path: path.stat().st_mtime)
        seconds = {path.stem: json.loads(path.read_text())["seconds"] for path in ended}
    print(f"{name}: " + ", ".join(f"{cell} {taken:.1f} s" for cell, taken in seconds.items()), flush=True)
    return 1


if __name__ == "__main__":
    main()
