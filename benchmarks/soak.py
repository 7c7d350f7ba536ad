"""Runs that are disturbed at seeded random times, against the same run left alone.

    python -m benchmarks.soak [--rounds 16] [--seed 0] [--faults workers rank ...]

Each round starts the run anew and disturbs it at a random time between its first iteration and its end:

    workers     three rollout actors are killed, one after another
    rank        a learner rank is killed
    raylet      Ray's daemon is killed, as if the node was lost
    driver      the run's own process is killed
    hung_worker a rollout actor stops (SIGSTOP) and never goes on
    hung_rank   a learner rank stops and never goes on
    partition   Ray's daemon stops for 1 to 120 s and goes on, as if the node could not be reached
    disk        the disk of the run's folder is full until the run is resumed (needs root: a tmpfs)
    slow_disk   from then on that disk writes 128 KiB to 1 MiB a second (needs root and cgroup v1: a throttled loop)

and then has one of these results:

    same      the run ended by itself with the adapter of the undisturbed run, bit for bit
    resumed   the run stopped in time and named its cause in error.json (on a full disk, on its console; a killed
              driver names none); resumed, it ended with that adapter
    wrong     anything else

A round also says what was left 20 s later: living processes, and new entries of the temporary folder and /dev/shm.
Other programs on the machine may have made the latter.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
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
# As the processes' command lines have it.
WORKER, RANK, RAYLET = "RolloutActor", "LearnerActor", "raylet/raylet"
DISK_MIB = 64
FULL = "No space left on device"
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
START_S, STOP_S, LEFT_S = 480.0, 120.0, 20.0  # deadlines
POLL_S = 0.5


class Run:
    """A run in a process of its own, whose folder is in `home`; one whose folder exists is resumed.

    `further`: settings of a new run beside SETTINGS. `seen`: the processes that it has started.
    """

    def __init__(self, home: Path, further: Sequence[str] = ()) -> None:
        self.home, self.folder, self.log = home, home / "run", home.with_suffix(".log")
        self.seen, self.before = set[psutil.Process](), _entries()
        exists = self.folder.is_dir()
        words = (f"resume={self.folder}",) if exists else (*SETTINGS, *further, f"output_dir={self.folder}")
        with self.log.open("a") as log:
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

    def cause(self) -> str:
        """What the run says ended it; empty if it says nothing."""
        if error := run_error.read(self.folder):
            return str(error)
        return next((line.strip() for line in self.log.read_text().splitlines() if FULL in line), "")

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


def undisturbed(home: Path) -> tuple[str, float]:
    """The adapter of a run that nothing happens to, and the seconds from its first iteration to its end."""
    run = Run(home)
    run.wait(lambda: run.iterations() >= 1, START_S)
    began = time.monotonic()
    if not run.ends(START_S) or run.process.returncode != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{run.log.read_text()}")
    return run.adapter, time.monotonic() - began


def newest(run: Run, title: str, rng: random.Random) -> psutil.Process | None:
    """One of the run's processes of this title: of the two newest, since a replaced actor may still be ending."""
    return rng.choice(run.processes(title)[-2:] or [None])


def send(number: signal.Signals, title: str, run: Run, rng: random.Random) -> None:
    if victim := newest(run, title, rng):
        victim.send_signal(number)


def kill_driver(run: Run, rng: random.Random) -> None:
    run.process.kill()


def partition(run: Run, rng: random.Random) -> None:
    if victim := newest(run, RAYLET, rng):
        victim.suspend()
        threading.Timer(120 ** rng.random(), _go_on, [victim]).start()


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.resume()


def fill_disk(run: Run, rng: random.Random) -> None:
    with contextlib.suppress(OSError), (run.home / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(2**16))


def empty_disk(run: Run) -> None:
    (run.home / "ballast").unlink(missing_ok=True)


def slow_disk(run: Run, rng: random.Random) -> None:
    throttle(run.home, int(2 ** rng.uniform(17, 20)))


def throttle(folder: Path, rate: int) -> None:
    """Let the disk of this folder write `rate` bytes a second; 0 lifts the limit."""
    device = os.stat(folder).st_dev
    THROTTLE.write_text(f"{os.major(device)}:{os.minor(device)} {rate}")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A new folder on a disk of DISK_MIB."""
    folder.mkdir()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs"):
        yield


@contextlib.contextmanager
def sync_disk(folder: Path) -> Iterator[None]:
    """A new folder on a disk whose writes are waited for, and which can be slowed down (`throttle`)."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(DISK_MIB * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with _mounted(folder, "-o", "loop,sync", str(image)):
        try:
            yield
        finally:
            throttle(folder, 0)


@contextlib.contextmanager
def _mounted(folder: Path, *words: str) -> Iterator[None]:
    subprocess.run(["mount", *words, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and what a round needs for it."""

    happen: Callable[[Run, random.Random], None]
    times: int = 1
    survived: bool = False  # a run replaces what it lost, or waits, and goes on
    tells: bool = True  # a run that it stops can name the cause
    settings: tuple[str, ...] = ()  # further settings of the run
    disk: Callable[[Path], AbstractContextManager[object]] = contextlib.nullcontext  # of the run's folder
    mend: Callable[[Run], object] = lambda run: None  # before the run is resumed


# So that one who hangs is noticed within STOP_S. On a busy machine a learner takes longer to start.
SHORT_WORKER, SHORT_RANK = ("rollout.timeout_s=60",), ("learner.timeout_s=60",)
FAULTS = {
    "workers": Fault(partial(send, signal.SIGKILL, WORKER), times=3, survived=True),
    "rank": Fault(partial(send, signal.SIGKILL, RANK)),
    "raylet": Fault(partial(send, signal.SIGKILL, RAYLET)),
    "driver": Fault(kill_driver, tells=False),
    "hung_worker": Fault(partial(send, signal.SIGSTOP, WORKER), survived=True, settings=SHORT_WORKER),
    "hung_rank": Fault(partial(send, signal.SIGSTOP, RANK), settings=SHORT_RANK),
    "partition": Fault(partition),
    "disk": Fault(fill_disk, disk=small_disk, mend=empty_disk),
    "slow_disk": Fault(slow_disk, survived=True, disk=sync_disk, mend=lambda run: throttle(run.home, 0)),
}


def disturb(run: Run, fault: Fault, rng: random.Random, span: float) -> float:
    """Disturb a run from its first iteration on, within `span` seconds; return the time of the last fault."""
    run.wait(lambda: run.iterations() >= 1, START_S)
    pauses = sorted(rng.uniform(0.0, 0.9 * span) for _ in range(fault.times))
    began = time.monotonic()
    for pause in pauses:
        due = began + pause
        run.wait(lambda due=due: time.monotonic() >= due, START_S)  # type: ignore[misc]
        with contextlib.suppress(psutil.Error):  # the run is just ending
            fault.happen(run, rng)
    return time.monotonic()


def outcome_of(run: Run, fault: Fault, struck: float, adapter: str) -> Outcome:
    """What comes of a run that was disturbed at the time `struck`. If it stops, it is resumed."""
    over = run.ends(START_S if fault.survived else STOP_S)
    notice_s, left = time.monotonic() - struck, _left(run)
    if not over:
        return Outcome("wrong", "it neither stopped nor ended in time", notice_s, left)
    if run.process.returncode == 0:
        return Outcome("same" if run.adapter == adapter else "wrong", left=left)
    cause = run.cause()
    if not cause and fault.tells:
        return Outcome("wrong", f"it ended with {run.process.returncode} and names no cause", notice_s, left)
    fault.mend(run)
    resumed = Run(run.home)
    well = resumed.ends(START_S) and resumed.process.returncode == 0 and resumed.adapter == adapter
    return Outcome("resumed" if well else "wrong", cause, notice_s, left)


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
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    args = parser.parse_args()
    results = collections.Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as scratch:
        adapter, span = undisturbed(Path(scratch) / "undisturbed")
        print(f"undisturbed: {span:.0f} s from the first iteration to the end, adapter {adapter}", flush=True)
        for n in range(args.rounds):
            name = args.faults[n % len(args.faults)]
            rng = random.Random(f"{args.seed} {n}")
            outcome = round_of(Path(scratch) / f"round{n}", FAULTS[name], rng, adapter, span)
            results[name, outcome.result] += 1
            print(n, name, outcome, flush=True)
    for (name, result), count in sorted(results.items()):
        print(f"{name:11} {result:8} {count}")


def round_of(home: Path, fault: Fault, rng: random.Random, adapter: str, span: float) -> Outcome:
    with fault.disk(home):
        run = Run(home, fault.settings)
        outcome = outcome_of(run, fault, disturb(run, fault, rng, span), adapter)
    if outcome.result == "wrong":
        print(run.log.read_text(), flush=True)
    return outcome


if __name__ == "__main__":
    main()
