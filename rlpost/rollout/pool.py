"""The rollout workers as one pool: takes a batch of specs, returns groups of trajectories as they finish.

    stream(specs)  ──▶ a share of the specs to each actor ──▶ its episodes, as they end ──▶ whole groups, as they are
                       every share must be played within rollout.timeout_s
                       an actor dies ──▶ a new one starts, takes the live adapter and plays the same share again, with
                       a new deadline; this repeats while restarts are left
    collect(specs) ──▶ all groups of the stream, in the order of the specs
    swap(adapter)  ──▶ every actor, or none: if one refuses, those that took it return to the version before
    begin(cfg)     ──▶ every actor back at the bare base, for the next run; else the pool must be closed

A share is played again as a whole, including groups that were already handed over: the engine's rounding depends on the
batch, so only equal batches give the episodes of a run that lost no worker.

Which actor plays an episode does not matter: the episode's seed decides its random draws. The episodes of a group go to
one actor, whose engine computes their common prompt once; at most workers - 1 groups are split between two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from rlpost.cluster.actor_calls import ActorLostError, Asked, cancel, first_answered, get, get_all, take
from rlpost.cluster.memory import Memory
from rlpost.config.schema import Config
from rlpost.envs import given
from rlpost.errors import RlpostError, RolloutError, SwapError
from rlpost.rollout.engine.protocol import Sampling, SwapReport
from rlpost.rollout.engine.settings import engine_environment
from rlpost.rollout.groups import GroupAssembler
from rlpost.rollout.worker import RolloutActor
from rlpost.types import Canary, EpisodeSpec, Trajectory
from rlpost.weights.adapters import Adapter

Ask = Callable[[Any], Asked]  # asks an actor; gives the pending answer
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
    """Starts `cfg.rollout.workers` actors. `restarts` counts the actors that the run has replaced."""

    def __init__(self, cfg: Config, model_folder: Path) -> None:
        self.cfg, self._model_folder = cfg, model_folder
        self.restarts = 0
        self._live: tuple[Adapter, Canary] | None = None
        self._actors: list[Any] = [self._spawn() for _ in range(cfg.rollout.workers)]
        self._starts = [self._start(actor) for actor in self._actors]

    def wait_ready(self) -> None:
        """Wait until all engines are up; they start with the pool. Raises ClusterError, RolloutError."""
        get_all(self._starts, self.cfg.rollout.timeout_s, [self._name(i) for i in range(len(self._actors))])

    def begin(self, cfg: Config) -> None:
        """Begin another run, whose engines and number of workers are the same. See `RolloutActor.begin`.

        Raises SwapError, RolloutError or ClusterError, also if a worker has died; the pool must then be closed.
        """
        self.cfg, self.restarts, self._live = cfg, 0, None
        asked = [actor.begin.remote(cfg, given.table()) for actor in self._actors]
        get_all(asked, cfg.rollout.timeout_s, [self._name(i) for i in range(len(self._actors))])

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
            RolloutError: workers died more often than rollout.restarts allows.
            ClusterError: a worker did not play its share within rollout.timeout_s.
        """
        shares = [share for share in shares_of(specs, len(self._actors)) if share]
        asks = [_streaming([specs[k] for k in share], sampling) for share in shares]
        groups = GroupAssembler(specs)
        with closing(self._answers(asks)) as answers:
            for i, ended in answers:
                for k, trajectory in ended:
                    if group := groups.add(shares[i][k], trajectory):
                        yield group
        assert not groups.missing, f"groups {groups.missing} were not played"

    def swap(self, adapter: Adapter, canary: Canary) -> PoolSwapReport:
        """Make `adapter` live in every worker, or in none.

        Raises:
            SwapError: a worker refused it; all workers serve the previous version.
        """
        reports = self._one_each([_swapping(ray.put(adapter), canary)] * len(self._actors), kept=SwapError)
        refused = self._refusals(reports)
        if refused:
            self._roll_back(adapter)
            raise SwapError(f"Adapter version {adapter.version} did not take. " + " ".join(refused))
        self._live = (adapter, canary)
        return _worst(reports)

    def memory(self) -> list[Memory]:
        """The host memory of each worker, in their order. Raises like `swap`; a worker that died is replaced."""
        return self._one_each([lambda actor: actor.memory.remote()] * len(self._actors), kept=SwapError)

    def recycle(self, i: int) -> None:
        """Replace worker i, which is idle, by a new process with the live adapter. It does not count as a loss.

        Raises RolloutError or ClusterError if no new one starts.
        """
        with suppress(RlpostError):  # the process ends in any case
            get(self._actors[i].close.remote(), CLOSING_S, self._name(i))
        ray.kill(self._actors[i])
        self._actors[i] = self._spawn()
        try:
            self._bring_up(i)
        except ActorLostError as error:
            self._replace(i, error)

    def close_environments(self) -> list[str]:
        """Close the environments of every worker before its process ends, and return what went wrong, by worker.

        Raises nothing, since the work is done.
        """
        wrong, deadline = [], time.monotonic() + CLOSING_S
        for i, ref in enumerate([actor.close.remote() for actor in self._actors]):
            try:
                told = get(ref, max(0.0, deadline - time.monotonic()), self._name(i))
                wrong += [f"{self._name(i)}: {each}" for each in told]
            except Exception as error:
                wrong.append(f"{self._name(i)}: {error}")
        return wrong

    def close(self) -> None:
        """End the process of every actor."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _one_each(self, asks: Sequence[Ask], kept: type[RlpostError]) -> list[Any]:
        """One answer per worker, in the order of workers; see `_answers`."""
        answers = dict(self._answers(asks, kept))
        return [answers[i] for i in range(len(asks))]

    def _answers(
        self, asks: Sequence[Ask], kept: type[RlpostError] | None = None
    ) -> Generator[tuple[int, Any]]:
        """Ask each worker one question, all at once; yield (worker, answer) in the order of arrival.

        A worker that died is replaced, and its successor asked again. An error of the type `kept` counts as an answer.
        If this ends early, open questions are cancelled.
        """
        timeout_s = self.cfg.rollout.timeout_s
        workers = {ask(actor): i for i, (ask, actor) in enumerate(zip(asks, self._actors, strict=False))}
        deadlines = dict.fromkeys(workers, time.monotonic() + timeout_s)
        try:
            while deadlines:
                names = {asked: self._name(i) for asked, i in workers.items()}
                asked = first_answered(deadlines, timeout_s, names)
                i, over = workers[asked], True
                answers: list[Any] = []
                try:
                    answers, over = take(asked, timeout_s, self._name(i))
                except ActorLostError as error:
                    self._replace(i, error)
                    again = asks[i](self._actors[i])
                    workers[again], deadlines[again] = i, time.monotonic() + timeout_s
                except RlpostError as error:
                    if kept is None or not isinstance(error, kept):
                        raise
                    answers = [error]
                if over:
                    del deadlines[asked]
                yield from ((i, answer) for answer in answers)
        finally:
            cancel(deadlines)

    def _replace(self, i: int, reason: ActorLostError) -> None:
        """Start a new actor in place i, with the live adapter. Raises RolloutError if too many actors have died."""
        while True:
            self.restarts += 1
            if self.restarts > self.cfg.rollout.restarts:
                raise RolloutError(
                    f"{reason} That is worker number {self.restarts} to be lost;"
                    f" rollout.restarts={self.cfg.rollout.restarts} allows no more. Its last words are in the Ray logs;"
                    " out of memory is the usual reason (rollout.kv_cache_gib, rollout.max_num_seqs)."
                ) from reason
            ray.kill(self._actors[i])  # an actor that Ray merely cannot reach would keep its CPUs and its GPU
            self._actors[i] = self._spawn()
            try:
                return self._bring_up(i)
            except ActorLostError as error:
                reason = error

    def _bring_up(self, i: int) -> None:
        """Start a replacement and give it the live adapter."""
        actor, timeout_s, name = self._actors[i], self.cfg.rollout.timeout_s, f"{self._name(i)} (replacement)"
        get(self._start(actor), timeout_s, name)
        if self._live is not None:
            get(actor.swap.remote(*self._live), timeout_s, name)

    def _roll_back(self, refused: Adapter) -> None:
        """Return the workers that took `refused` to the previous version."""
        if self._live is None:
            return  # after a refused first swap the run stops, so no worker is used again
        failure = f"Version {refused.version} was refused, and not every worker is back at {self._live[0].version}: "
        try:
            answers = self._one_each([_swapping(*self._live)] * len(self._actors), kept=SwapError)
        except RlpostError as error:
            raise SwapError(f"{failure}{error}") from error
        if stuck := self._refusals(answers):
            raise SwapError(failure + " ".join(stuck))

    def _refusals(self, answers: Sequence[SwapReport | SwapError]) -> list[str]:
        """The reasons of the workers that refused an adapter."""
        return [
            f"{self._name(i)}: {answer}" for i, answer in enumerate(answers) if isinstance(answer, SwapError)
        ]

    def _spawn(self) -> Any:
        rollout = self.cfg.rollout
        threads, ranks = max(1, round(rollout.cpus)), rollout.tensor_parallel
        environment = engine_environment(threads, rollout.enforce_eager, ranks)
        options: dict[str, Any] = {"num_cpus": ranks * rollout.cpus, "num_gpus": ranks * rollout.gpus}
        actor = ray.remote(**options, max_restarts=0, runtime_env={"env_vars": environment})(RolloutActor)
        return actor.remote()

    def _start(self, actor: Any) -> Any:
        return actor.start.remote(self.cfg, str(self._model_folder), given.table())

    def _name(self, i: int) -> str:
        return f"rollout worker {i}"


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
