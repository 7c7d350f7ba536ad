"""Runs that lose processes at seeded random times, against the same run left alone.

    python -m benchmarks.soak [--rounds 10] [--seed 0] [--faults workers rank raylet driver]

Each round starts the run anew and disturbs it at a random time between its first iteration and its end:

    workers   three rollout actors are killed, one after another
    rank      a learner rank is killed
    raylet    Ray's daemon is killed, as if the node was lost
    driver    the run's own process is killed

and then has one of these results:

    same      the run ended by itself with the adapter of the undisturbed run, bit for bit
    resumed   the run stopped in time with its cause in error.json (a killed driver writes none); resumed, it ended with
              that adapter
    wrong     anything else

A round also says what was left 20 s later: living processes, and new entries of the temporary folder and /dev/shm.
Other programs on the machine may have made the latter.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlpost.cluster.processes import kill_tree
from rlpost.record import run_error
from rlpost.weights.adapters import Adapter

SETTINGS = (
    "experiment=generalpoints_ppo",
    "dtype=float32",
    "algo.iterations=5",
    "algo.critic_warmup=1",
    "algo.learning_rate=1e-3",
    "algo.minibatches=2",
    "sft.steps=2",
    "sft.batch_size=8",
    "rollout.workers=2",
    "rollout.cpus=0.5",
    "rollout.kv_cache_gib=0.25",
    "rollout.episodes=32",
    "env_args.verify_iter=2",
    "eval.episodes=4",
    "eval.greedy=false",
    "learner.cpus=0.5",
    "learner.threads=1",
    "tracking.checkpoint_every=1",
    "tracking.backends=[]",
)
TITLES = {"workers": "RolloutActor", "rank": "LearnerActor", "raylet": "raylet/raylet"}
KILLS = {"workers": 3}  # of one round; 1 of the others
START_S, STOP_S, LEFT_S = 480.0, 120.0, 20.0  # deadlines
POLL_S = 0.5


class Run:
    """A run in a process of its own; one whose folder exists is resumed. `seen`: the processes that it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.before = folder, set[psutil.Process](), _entries()
        words = (f"resume={folder}",) if folder.is_dir() else (*SETTINGS, f"output_dir={folder}")
        with folder.with_suffix(".log").open("a") as log:
            command = [sys.executable, "-m", "rlpost.run", *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Wait until it happened or the run is over; False if neither came in time."""
        deadline = time.monotonic() + seconds
        while not happened() and self.process.poll() is None:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(psutil.Error):
                self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
            time.sleep(POLL_S)
        return True

    def ends(self, seconds: float) -> bool:
        """Wait for the run's end. One that does not come in time is killed."""
        over = self.wait(lambda: False, seconds)
        kill_tree(self.process)
        return over

    def iterations(self) -> int:
        """The number of iterations that are on record."""
        path = self.folder / "metrics.jsonl"
        return path.read_text().count('"stage": "rl"') if path.is_file() else 0

    def processes(self, title: str) -> list[psutil.Process]:
        """The run's living processes whose command line has this title, oldest first."""
        found = []
        for process in self.seen:
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    @property
    def adapter(self) -> str:
        """The fingerprint of the adapter that the run ended with."""
        return Adapter.load(self.folder / "adapter").fingerprint


@dataclass(frozen=True)
class Outcome:
    """Of one round. `notice_s` is the time from the kill to the end of a run that stopped."""

    result: str
    cause: str = ""
    notice_s: float = 0.0
    left: tuple[str, ...] = ()


def undisturbed(folder: Path) -> tuple[str, float]:
    """The adapter of a run that nothing happens to, and the seconds from its first iteration to its end."""
    run = Run(folder)
    run.wait(lambda: run.iterations() >= 1, START_S)
    began = time.monotonic()
    if not run.ends(START_S) or run.process.returncode != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{folder.with_suffix('.log').read_text()}")
    return run.adapter, time.monotonic() - began


def kill(run: Run, fault: str, rng: random.Random, span: float) -> float:
    """Disturb a run from its first iteration on, within `span` seconds; return the time of the last kill."""
    run.wait(lambda: run.iterations() >= 1, START_S)
    pauses = sorted(rng.uniform(0.0, 0.9 * span) for _ in range(KILLS.get(fault, 1)))
    began = time.monotonic()
    for pause in pauses:
        due = began + pause
        run.wait(lambda due=due: time.monotonic() >= due, START_S)  # type: ignore[misc]
        victims = [psutil.Process(run.process.pid)] if fault == "driver" else run.processes(TITLES[fault])
        with contextlib.suppress(psutil.Error):
            rng.choice(victims[-2:]).kill()  # the newest: a replaced actor may still be ending
    return time.monotonic()


def outcome_of(run: Run, fault: str, killed: float, adapter: str) -> Outcome:
    """What comes of a run that was disturbed at the time `killed`. If it stops, it is resumed."""
    over = run.ends(START_S if fault == "workers" else STOP_S)
    notice_s, left = time.monotonic() - killed, _left(run)
    if not over:
        return Outcome("wrong", "it neither stopped nor ended in time", notice_s, left)
    if run.process.returncode == 0:
        return Outcome("same" if run.adapter == adapter else "wrong", left=left)
    error = run_error.read(run.folder)
    if error is None and fault != "driver":
        return Outcome("wrong", f"it ended with {run.process.returncode} and names no cause", notice_s, left)
    resumed = Run(run.folder)
    well = resumed.ends(START_S) and resumed.process.returncode == 0 and resumed.adapter == adapter
    return Outcome("resumed" if well else "wrong", str(error or ""), notice_s, left)


def _entries() -> set[Path]:
    return {path for parent in (tempfile.gettempdir(), "/dev/shm") for path in Path(parent).iterdir()}


def _left(run: Run) -> tuple[str, ...]:
    """What is left of a run that is over: processes, and entries of folders that were not there before."""
    _, alive = psutil.wait_procs(list(run.seen), timeout=LEFT_S)
    processes = [f"process {process.pid}: {process.name()}" for process in alive]
    return (*processes, *(str(path) for path in sorted(_entries() - run.before)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", default=["workers", "rank", "raylet", "driver"])
    args = parser.parse_args()
    results = collections.Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as scratch:
        adapter, span = undisturbed(Path(scratch) / "undisturbed")
        print(f"undisturbed: {span:.0f} s from the first iteration to the end, adapter {adapter}", flush=True)
        for n in range(args.rounds):
            fault = args.faults[n % len(args.faults)]
            rng = random.Random(f"{args.seed} {n}")
            run = Run(Path(scratch) / f"round{n}")
            outcome = outcome_of(run, fault, kill(run, fault, rng, span), adapter)
            results[fault, outcome.result] += 1
            print(n, fault, outcome, flush=True)
    for (fault, result), count in sorted(results.items()):
        print(f"{fault:8} {result:8} {count}")


if __name__ == "__main__":
    main()
