"""The memory plan beside what a run takes, process by process, in one run.

    python -m benchmarks.memory_plan generalpoints_ppo [model=smollm2-135m] [any settings] [--iterations 3]

A run of the product is sampled every SAMPLE_S: private memory (RssAnon of /proc/PID/status, which reads counters and
walks no pages) of the driver, of each rollout worker and learner rank, and of Ray's daemons together. Peaks stand
beside the plan's "at most". Choose settings by which the plan's assumptions hold: rollout.max_model_len near the
episodes' length, and a KV cache that the episodes fill. Workers of Ray that are not actors yet, or run a short task,
stand apart and are not in the plan.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.machine import processor
from benchmarks.runs import ITERATIONS_ONLY
from rlpost.cluster.precision import settle
from rlpost.cluster.processes import kill_tree
from rlpost.config.compose import compose
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import Plan
from rlpost.memory.plan import memory_plan
from rlpost.weights.models import resolve

SAMPLE_S = 0.1
MIB = 2**20
DRIVER, DAEMONS, OTHER = "driver", "Ray's daemons", "Ray's other workers"
# By the start of the command line, the first that fits; the agents of a node are named as workers are.
TITLES = {
    "ray::RolloutActor": "rollout worker",
    "ray::LearnerActor": "learner rank",
    "ray::DashboardAgent": DAEMONS,
    "ray::RuntimeEnvAgent": DAEMONS,
    "ray::": OTHER,
}
KINDS = ("RssAnon", "RssFile", "RssShmem")

Taken = dict[str, int]  # bytes by KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--iterations", type=int, default=3)
    args = parser.parse_args()
    words = [
        f"experiment={args.experiment}",
        *ITERATIONS_ONLY,
        f"algo.iterations={args.iterations}",
        *args.settings,
    ]
    cfg = compose(words)
    folder = resolve(cfg.model)
    cfg = replace(cfg, dtype=settle(cfg, folder).dtype)
    plan = memory_plan(cfg, ModelShape.read(folder))
    print(f"{processor()}\n{' '.join(args.settings)} dtype={cfg.dtype.value}, load {os.getloadavg()[0]:.1f}")
    report(plan, peaks([*words, f"dtype={cfg.dtype.value}"]))


def peaks(words: list[str]) -> Mapping[str, Taken]:
    """The peaks of a run by process (of the workers or ranks, the largest). Raises RuntimeError if the run fails."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "rlpost.run", *words, f"output_dir={Path(scratch) / 'run'}"]
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            run = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                found = _watched(psutil.Process(run.pid))
            finally:
                kill_tree(run)
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}:\n{log.read_text()}")
    return found


def _watched(run: psutil.Process) -> Mapping[str, Taken]:
    highest: dict[str, Taken] = defaultdict(lambda: dict.fromkeys(KINDS, 0))
    while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
        now: dict[str, list[Taken]] = defaultdict(list)
        for process in (run, *_children(run)):
            with contextlib.suppress(psutil.Error, OSError, KeyError):  # it has just ended
                name, taken = _name(process, run), _taken(process.pid)
                now[name].append(taken)
        for name, several in now.items():
            together = sum if name == DAEMONS else max
            for kind in KINDS:
                highest[name][kind] = max(highest[name][kind], together(each[kind] for each in several))
        time.sleep(SAMPLE_S)
    return highest


def _children(run: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        found = run.children(recursive=True)
    return found


def _name(process: psutil.Process, run: psutil.Process) -> str:
    if process == run:
        return DRIVER
    title = " ".join(process.cmdline())
    return next((name for start, name in TITLES.items() if title.startswith(start)), DAEMONS)


def _taken(pid: int) -> Taken:
    """Raises KeyError for a process that is just ending, which has no sizes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    told = {kind: rest for kind, _, rest in (line.partition(":") for line in status.splitlines())}
    return {kind: int(told[kind].split()[0]) * 1024 for kind in KINDS}


def report(plan: Plan, measured: Mapping[str, Taken]) -> None:
    print("process            planned  measured  ratio   files  shared (MiB; the last two are not planned)")
    for process in plan.processes:
        if process.name not in measured:
            continue
        taken = {kind: size / MIB for kind, size in measured[process.name].items()}
        planned = process.size() / MIB
        print(
            f"{process.name:18} {planned:7.0f}  {taken['RssAnon']:8.0f}  {planned / taken['RssAnon']:5.2f}"
            f"  {taken['RssFile']:6.0f}  {taken['RssShmem']:6.0f}"
        )
        parts = ", ".join(f"{part.name} {part.size / MIB:.1f}" for part in process.host)
        print(f"    {parts}")
    print(f"{OTHER}, the largest: {measured.get(OTHER, {}).get('RssAnon', 0) / MIB:.0f} MiB, not planned")


if __name__ == "__main__":
    main()
