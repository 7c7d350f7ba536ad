"""Does an iteration of a run again and compares the result with the record: rlpost replay RUN --iteration 37."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlpost.config.compose import compose
from rlpost.record.run_dir import RunDir
from rlpost.record.versions import changes
from rlpost.verbs import policy

EQUAL = "equal to the last bit"


def main(argv: Sequence[str]) -> int:
    """Do an iteration of a run again, and compare it with the record; exit code 0: equal, 1: something differs."""
    parser = argparse.ArgumentParser(prog="rlpost replay", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="as the run printed it; it is only read")
    parser.add_argument(
        "--iteration",
        type=int,
        required=True,
        metavar="N",
        help="as in the names of its files, from 0; the console and the page count from 1",
    )
    parser.add_argument(
        "--rollouts", action="store_true", help="also play its episodes again, by their seeds"
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="settings that resume= allows too: code that the record names, where the teacher is, deadlines",
    )
    asked = parser.parse_intermixed_args(argv)
    return _replay(policy.run_at(asked.run), asked.iteration, asked.rollouts, asked.words)


def _replay(run_dir: RunDir, iteration: int, rollouts: bool, words: Sequence[str]) -> int:
    cfg = compose([f"resume={run_dir.path}", "ray.address=null", *words])
    from rlpost.tasks import replay  # imports torch and Ray

    if rollouts:
        replay.refuse_rollouts(cfg)
    start = replay.start_of(cfg, run_dir, iteration)
    for warning in _other_versions(run_dir):
        print(f"warning: {warning}", flush=True)
    updates = iteration - start.iteration + 1
    print(f"replaying {updates} update{'s' * (updates > 1)} from {start.path}", flush=True)
    differences, weights = 0, False
    for found in replay.replay(cfg, run_dir, start, iteration, rollouts):
        print(f"{found.part}: {found.difference or EQUAL}", flush=True)
        differences += found.difference is not None
        weights |= found.weights
    if not differences and not weights:
        print(f"The weights after iteration {iteration} are not kept, so the figures alone were compared.")
    return 1 if differences else 0


def _other_versions(run_dir: RunDir) -> list[str]:
    """What makes a difference in the last bits likely, though nothing is wrong."""
    if not run_dir.versions.is_file():
        return [f"{run_dir.versions} is missing: nobody knows with which versions the run was made"]
    recorded = json.loads(run_dir.versions.read_bytes())
    warnings = [
        f"the run was made with {change}; the last bits may differ for this reason alone"
        for change in changes(recorded)
    ]
    if recorded.get("earlier"):
        warnings.append(
            "parts of the run were made with other versions (versions.json has them in `earlier`)"
        )
    return warnings
