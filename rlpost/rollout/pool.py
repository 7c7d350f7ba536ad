"""The rollout workers as one pool: takes a batch of specs, returns groups of trajectories as they finish.

    stream(specs)  ──▶ a share of the specs to each actor ──▶ its episodes, as they end ──▶ whole groups, as they are
                       every share must be played within rollout.timeout_s
                       an actor dies ──▶ a new one starts, takes the live adapter and plays the same share again, with
                       a new deadline (rlpost.rollout.supervisor)
    collect(specs) ──▶ all groups of the stream, in the order of the specs
    swap(adapter)  ──▶ every actor, or none: if one refuses, those that took it return to the version before
    sleep()        ──▶ every engine frees its GPU memory for the learner; whatever is asked next wakes all of them first
    begin(cfg)     ──▶ every actor back at the bare base, for the next run; else the pool must be closed

A share is played again as a whole, including groups that were already handed over: the engine's rounding depends on the
batch, so only equal batches give the episodes of a run that lost no worker.

Which actor plays an episode does not matter: the episode's seed decides its random draws. The episodes of a group go to
one actor, whose engine computes their common prompt once; at most workers - 1 groups are split between two. There is
a share for each of the places that workers have when a batch begins: rollout.workers of them, and those that were added
since (rollout.max_workers). If workers are missing, the others play their shares after their own, in equal batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from rlpost.cluster.actor_calls import Asked, get
from rlpost.cluster.memory import Memory
from rlpost.cluster.placement import Placement, Plan
from rlpost.config.schema import Config
from rlpost.envs import given
from rlpost.errors import RlpostError, SwapError
from rlpost.rollout.engine.protocol import Sampling, SwapReport
from rlpost.rollout.engine.settings import engine_environment
from rlpost.rollout.groups import GroupAssembler
from rlpost.rollout.members import Ask, Members
from rlpost.rollout.supervisor import Supervisor
from rlpost.rollout.worker import RolloutActor
from rlpost.types import Canary, EpisodeSpec, Trajectory
from rlpost.weights.adapters import Adapter

CLOSING_S = 30.0  # deadline for closing the environments of all workers; their processes end in any case


@dataclass(frozen=True)
class PoolSwapReport:
    """A swap in all workers. Figures are the worst of any worker, except the time."""

    version: int
    modules_bound: int
    canary_gap: float
    rounding_loss: float
    seconds: float  # median over workers of the time in the engine

    def metrics(self) -> dict[str, float]:
        return {
            "swap/canary_gap": self.canary_gap,
            "swap/rounding_loss": self.rounding_loss,
            "swap/modules_bound": float(self.modules_bound),
            "swap/engine_seconds": self.seconds,
        }


class RolloutPool:
    """Starts `cfg.rollout.workers` actors, and more whenever it is told to `grow`.

    `placement`: where each actor goes; by default Ray places each by itself.
    """

    def __init__(self, cfg: Config, model_folder: Path, placement: Placement | None = None) -> None:
        self.cfg, self._model_folder = cfg, model_folder
        self.placement = placement or Placement(Plan.of(cfg))
        self._supervisor = Supervisor(cfg, self.placement, self._spawn, self._start)
        self._asleep = False

    @property
    def restarts(self) -> int:
        """The number of actors that the run has replaced."""
        return self._members.restarts

    @property
    def workers(self) -> int:
        """The number of workers that play; fewer than rollout.workers only if rollout.min_workers allows it."""
        return len(self._members.present)

    @property
    def places(self) -> int:
        """The number of workers that play or are missing: of shares of a batch that begins now."""
        return len(self._members.all)

    @property
    def ready(self) -> list[int]:
        """The numbers of the workers that `ask` may ask: those that have started and serve the live adapter."""
        return self._supervisor.ready()

    @property
    def _members(self) -> Members:
        return self._supervisor.members

    def attend(self, tell: Callable[[str], None], check: Callable[[], None]) -> None:
        """During waits, `tell` the user what becomes of workers, and `check` something else, at least once a second.

        What `check` raises ends the wait.
        """
        self._members.tell = self._supervisor.newcomers.tell = tell
        self._supervisor.check = check

    def wait_ready(self) -> None:
        """Wait until all engines are up; they start with the pool. Raises ClusterError, RolloutError."""
        self._supervisor.wait_ready()

    def begin(self, cfg: Config) -> None:
        """Begin another run, whose engines and number of workers are the same. See `RolloutActor.begin`.

        Raises SwapError, RolloutError or ClusterError, also if a worker has died; the pool must then be closed.
        """
        self.wake()
        self.cfg = cfg
        self._supervisor.begin(cfg, lambda actor: actor.begin.remote(cfg, given.table()))

    def grow(self) -> None:
        """Between iterations: take in workers that have started, and let more start on nodes that have room now.

        It waits for nothing, and adds no more than rollout.max_workers allows.
        """
        self._supervisor.grow()

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        """Play all episodes; return trajectories in the order of `specs`. Raises like `stream`."""
        with closing(self.stream(specs, sampling)) as stream:
            groups = {group[0].group: iter(group) for group in stream}
        return [next(groups[spec.group]) for spec in specs]

    def stream(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> Generator[list[Trajectory]]:
        """Play all episodes; yield each group once its last episode is over, with episodes in the order of `specs`.

        Workers start when the first group is requested. They go on while the caller processes a group, and their
        deadline keeps running. If the stream is closed early (contextlib.closing), they stop after the current engine
        step.

        Raises:
            RolloutError: more workers were lost than rollout.restarts and rollout.min_workers allow.
            ClusterError: a worker did not play its share within rollout.timeout_s, or no node has room for it.
        """
        self.wake()
        shares = shares_of(specs, self.places)
        asks = {i: _streaming([specs[k] for k in share], sampling) for i, share in enumerate(shares) if share}
        groups = GroupAssembler(specs)
        with closing(self._supervisor.answers(asks)) as answers:
            for i, ended in answers:
                for k, trajectory in ended:
                    if group := groups.add(shares[i][k], trajectory):
                        yield group
        assert not groups.missing, f"groups {groups.missing} were not played"

    def swap(self, adapter: Adapter, canary: Canary) -> PoolSwapReport:
        """Make `adapter` live in every worker, or in none. Workers that have started meanwhile join before.

        Raises:
            SwapError: a worker refused it; all workers serve the previous version.
        """
        self.wake()
        self._supervisor.take_in()
        reports = self._one_each(_swapping(ray.put(adapter), canary))
        refused = self._refusals(reports)
        if refused:
            self._roll_back(adapter)
            raise SwapError(f"Adapter version {adapter.version} did not take. " + " ".join(refused))
        self._supervisor.serve((adapter, canary), reports)
        return _worst(list(reports.values()))

    def sleep(self) -> None:
        """With rollout.sleep, free the GPU memory of every engine until the next use; else do nothing.

        Another process must not allocate on these GPUs meanwhile, because vLLM measures what it has freed. A worker
        that dies is replaced as ever, and its successor sleeps too. Raises like `stream`.
        """
        if self.cfg.rollout.sleep and not self._asleep:
            self._one_each(lambda actor: actor.sleep.remote())
            self._asleep = True

    def wake(self) -> None:
        """Have every engine that sleeps take its GPU memory back. Raises like `stream`.

        `begin`, `stream` and `swap` do it themselves. The learner must have released what it does not hold.
        """
        if self._asleep:
            self._one_each(lambda actor: actor.wake.remote())
            self._asleep = False

    @property
    def lost(self) -> list[int]:
        """How often each worker was replaced."""
        return [member.replaced for member in self._members.all]

    def ask(self, worker: int, ask: Ask) -> Asked:
        """Ask one worker; returns the pending answer, for `next_answers`."""
        return ask(self._members.all[worker].actor)

    def next_answers(
        self, workers: Mapping[Asked, int], deadlines: Mapping[Asked, float]
    ) -> tuple[Asked, list[Any], bool]:
        """Wait for the first of some calls to get an answer: that call, its new answers, and whether it is over.

        `workers`: by call, the worker that was asked. `deadlines`: by call, in time.monotonic. If the worker has died,
        it is replaced, and the call is over without an answer; the caller asks again.

        Raises:
            ClusterError: calls were not answered by their deadlines, which names their workers; or no node has room for
                a replacement.
            RolloutError: workers died more often than rollout.restarts allows.
        """
        return self._supervisor.next_answers(workers, deadlines)

    def memory(self) -> dict[int, Memory]:
        """The host memory of each worker that is not missing, by its number. Raises like `stream`."""
        return self._one_each(lambda actor: actor.memory.remote())

    def recycle(self, i: int) -> None:
        """Replace worker i, which is idle, by a new process with the live adapter. It does not count as a loss.

        Raises RolloutError or ClusterError if no new one starts.
        """
        member = self._members.all[i]
        with suppress(RlpostError):  # the process ends in any case
            get(member.actor.close.remote(), CLOSING_S, member.name)
        self._supervisor.renew(member)

    def close_environments(self) -> list[str]:
        """Close the environments of every worker before its process ends, and return what went wrong, by worker.

        Raises nothing, since the work is done.
        """
        wrong, deadline = [], time.monotonic() + CLOSING_S
        started = [member for member in self._members.present if member.started]
        for member, ref in [(member, member.actor.close.remote()) for member in started]:
            try:
                told = get(ref, max(0.0, deadline - time.monotonic()), member.name)
                wrong += [f"{member.name}: {each}" for each in told]
            except Exception as error:
                wrong.append(f"{member.name}: {error}")
        return wrong

    def close(self) -> None:
        """End the process of every actor."""
        self._supervisor.close()

    def _one_each(self, ask: Ask) -> dict[int, Any]:
        """The answer, or the SwapError, of every worker that is not missing, by the worker's number."""
        asks = {member.number: ask for member in self._members.present}
        return dict(self._supervisor.answers(asks, kept=SwapError, own=True))

    def _roll_back(self, refused: Adapter) -> None:
        """Return the workers that took `refused` to the previous version."""
        live = self._supervisor.live
        if live is None:
            return  # after a refused first swap the run stops, so no worker is used again
        failure = (
            f"Version {refused.version} was refused, and not every worker is back at {live[0].version}: "
        )
        try:
            answers = self._one_each(_swapping(*live))
        except RlpostError as error:
            raise SwapError(f"{failure}{error}") from error
        if stuck := self._refusals(answers):
            raise SwapError(failure + " ".join(stuck))

    def _refusals(self, answers: Mapping[int, SwapReport | SwapError]) -> list[str]:
        """The reasons of the workers that refused an adapter, in the order of workers."""
        return [
            f"{self._members.all[i].name}: {answer}"
            for i, answer in sorted(answers.items())
            if isinstance(answer, SwapError)
        ]

    def _spawn(self, options: dict[str, Any]) -> Any:
        """An actor with these options of Ray."""
        rollout = self.cfg.rollout
        threads, ranks = max(1, round(rollout.cpus)), rollout.tensor_parallel
        environment = engine_environment(threads, rollout.enforce_eager, ranks)
        actor = ray.remote(**options, max_restarts=0, runtime_env={"env_vars": environment})(RolloutActor)
        return actor.remote()

    def _start(self, actor: Any) -> Any:
        return actor.start.remote(self.cfg, str(self._model_folder), given.table())


def shares_of(specs: Sequence[EpisodeSpec], workers: int) -> list[list[int]]:
    """Each worker's indices in `specs`, with sizes equal to within one episode.

    Episodes are laid out group by group and cut into one run per worker, so at most `workers` - 1 groups are split.
    """
    order = sorted(range(len(specs)), key=lambda k: (specs[k].group, k))
    cuts = [i * len(order) // workers for i in range(workers + 1)]
    return [order[begin:end] for begin, end in pairwise(cuts)]


def _streaming(specs: list[EpisodeSpec], sampling: Sampling) -> Ask:
    """A call that asks a worker to play these episodes and stream them as they end."""
    return lambda actor: actor.stream.options(num_returns="streaming").remote(specs, sampling)


def _swapping(adapter: Any, canary: Canary) -> Ask:
    """A call that asks a worker to make an adapter live."""
    return lambda actor: actor.swap.remote(adapter, canary)


def _worst(reports: Sequence[SwapReport]) -> PoolSwapReport:
    return PoolSwapReport(
        version=reports[0].version,
        modules_bound=min(report.modules_bound for report in reports),
        canary_gap=max(report.canary_gap for report in reports),
        rounding_loss=max(report.rounding_loss for report in reports),
        seconds=statistics.median(report.seconds for report in reports),
    )
