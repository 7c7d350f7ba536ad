"""`rollout.max_staleness=k` above 0: engines go on playing while the learner updates.

    version live   may be played                        learnt from
    v (start)      episodes of iterations 0 .. k        0  ─▶ version v + 1
    v + 1          ... of iteration k + 1 too           1  ─▶ version v + 2
    v + 2          ... of iteration k + 2 too           2  ─▶ ...

An iteration learns from the episodes that carry its number, as without staleness, so slow and long episodes are learnt
from as often as short ones. Episodes of iteration j begin only once the policy of iteration j - k is live. Versions
only increase, so no turn is older than k updates when it is learnt from: the bound holds by the order of events, and no
episode is played in vain. `staleness` checks it all the same.

A worker gets its share of an iteration as soon as the iteration may begin, and plays earlier iterations first. Between
its engine steps it takes an update (see rlpost.rollout.continuous): episodes go on under the new policy. A worker that
joins (rollout.max_workers) gets a share of what is handed out afterwards. What a worker owes that is lost for good is
handed out again.

A worker that has played all its episodes, while another has more than its engine decodes at once, takes over some that
the other has not begun, in whole groups. They are owed by the other until it says that it has given them back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlpost.cluster.actor_calls import Asked, cancel
from rlpost.config.schema import Config
from rlpost.errors import RolloutError
from rlpost.rollout.continuous import Key, Played
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.members import Ask
from rlpost.rollout.pool import RolloutPool, shares_of
from rlpost.rollout.specs import training_specs
from rlpost.types import EpisodeSpec, Trajectory


@dataclass
class _Call:
    """An open call of a worker."""

    worker: int
    begun: bool = False  # an answer was taken


class StreamingRollouts:
    """The episodes of training, played ahead. Once `settle` has returned, and in `swapping`, the pool is the caller's.

    All waits end after rollout.timeout_s and name the workers that did not answer. A worker that dies is replaced, and
    its successor plays again what had not arrived, under the policy that is live then.
    """

    def __init__(self, pool: RolloutPool, cfg: Config, sampling: Sampling) -> None:
        self._pool, self._cfg, self._sampling = pool, cfg, sampling
        self._owed: list[dict[Key, EpisodeSpec]] = [{} for _ in pool.lost]  # by worker
        self._arrived: dict[Key, Trajectory] = {}
        self._calls: dict[Asked, _Call] = {}  # those that are open
        # Workers that were asked to give episodes back, and have given none since.
        self._unshared: set[int] = set()
        # Iterations before this one are handed out; None before the first.
        self._handed_out: int | None = None
        self._lost = list(pool.lost)
        self._meter = _Meter(len(pool.lost))

    def collect(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        """The episodes of `specs`, all of one iteration, whose policy is live; in the order of `specs`.

        Those of later iterations that this policy may begin go on meanwhile, and after the return.

        Raises:
            RolloutError: workers died more often than rollout.restarts allows.
            ClusterError: workers did not play their share within rollout.timeout_s.
        """
        began = time.monotonic()
        self._allow(specs[0].iteration)
        known = self._arrived.keys() | {key for owed in self._owed for key in owed}
        self._hand_out([spec for spec in specs if _key(spec) not in known])
        self._wait_for({_key(spec) for spec in specs})
        self._meter.waited += time.monotonic() - began
        return [self._arrived.pop(_key(spec)) for spec in specs]

    @contextmanager
    def swapping(self, iteration: int) -> Iterator[None]:
        """The caller makes the policy of `iteration` live inside. Then all episodes that it may begin do begin."""
        self._interrupt()
        yield
        self._allow(iteration)

    def settle(self) -> None:
        """Play live episodes to their end and begin none, so that the engines are free. Raises like `collect`."""
        self._interrupt()
        self._resume(begin=False)
        deadline = self._deadline()
        while self._calls:
            self._next_answers(dict.fromkeys(self._calls, deadline))

    def metrics(self, batch: Sequence[Trajectory], live: int) -> dict[str, float]:
        """Staleness of `batch` at the version `live`, and the use of time since the last call; see docs/metrics.md.

        Raises RolloutError if a turn of the batch is older than rollout.max_staleness updates.
        """
        in_flight = sum(len(owed) for owed in self._owed)
        stale = staleness(batch, live, self._cfg.rollout.max_staleness)
        return {**stale, **self._meter.lap(), "streaming/in_flight": float(in_flight)}

    def _allow(self, iteration: int) -> None:
        """Hand out all iterations that the policy of `iteration` may begin."""
        self._count_losses()
        first = iteration if self._handed_out is None else self._handed_out
        end = min(iteration + self._cfg.rollout.max_staleness + 1, self._cfg.algo.iterations)
        self._handed_out = max(first, end)
        new = [spec for each in range(first, end) for spec in training_specs(self._cfg, each)]
        self._hand_out([*self._orphans(), *new])

    def _orphans(self) -> list[EpisodeSpec]:
        """Take from the workers that are missing what they owe. Their processes have ended."""
        ready, orphans = self._pool.ready, list[EpisodeSpec]()
        for worker, owed in enumerate(self._owed):
            if worker not in ready:
                orphans += owed.values()
                owed.clear()
        return orphans

    def _hand_out(self, specs: Sequence[EpisodeSpec]) -> None:
        """Share the episodes of each iteration among the workers that are ready, and let them play."""
        ready = self._pool.ready
        for iteration in sorted({spec.iteration for spec in specs}):
            batch = [spec for spec in specs if spec.iteration == iteration]
            for worker, share in zip(ready, shares_of(batch, len(ready)), strict=True):
                self._owed[worker].update({_key(batch[k]): batch[k] for k in share})
        if specs:
            self._unshared.clear()
            self._interrupt()
        self._resume()

    def _wait_for(self, wanted: set[Key]) -> None:
        deadline, restarts = self._deadline(), self._pool.restarts
        while missing := wanted - self._arrived.keys():
            if self._pool.restarts > restarts:  # a successor has a deadline of its own
                deadline, restarts = self._deadline(), self._pool.restarts
            late = {
                asked: math.inf if missing.isdisjoint(self._owed[call.worker]) else deadline
                for asked, call in self._calls.items()
            }
            self._next_answers(late)
            if orphans := self._orphans():
                deadline = self._deadline()
            self._hand_out(orphans)
            self._ask_back()

    def _next_answers(self, deadlines: dict[Asked, float]) -> None:
        """Receive what one worker has played."""
        workers = {asked: call.worker for asked, call in self._calls.items()}
        asked, answers, over = self._pool.next_answers(workers, deadlines)
        call = self._calls[asked]
        call.begun = True
        if over:
            del self._calls[asked]
        for played in answers:
            self._receive(call.worker, played)
        self._count_losses()

    def _count_losses(self) -> None:
        """Count the episodes that the successors of lost workers play again. Workers that have joined get a place."""
        for lost in self._pool.lost[len(self._owed) :]:
            self._owed.append({})
            self._lost.append(lost)
            self._meter.joined()
        for worker, lost in enumerate(self._pool.lost):
            if lost > self._lost[worker]:
                self._lost[worker] = lost
                self._meter.lost(worker, len(self._owed[worker]))

    def _receive(self, worker: int, played: Played) -> None:
        self._meter.worked(worker, played.engine_seconds)
        for trajectory in played.trajectories:
            key = trajectory.iteration, trajectory.episode
            if key in self._owed[worker]:  # else it had arrived, and the worker did not know yet
                del self._owed[worker][key]
                self._arrived[key] = trajectory
        if played.given_back:
            self._pass_on(worker, [self._owed[worker].pop(key) for key in played.given_back])

    def _ask_back(self) -> None:
        """If a worker has nothing to do, ask the one that owes most for half of what it cannot have begun."""
        busy = self._asked()
        if all(worker in busy for worker in self._pool.ready) or not (able := busy - self._unshared):
            return
        most = max(able, key=lambda worker: len(self._owed[worker]))
        waiting = len(self._owed[most]) - self._cfg.rollout.max_num_seqs
        if waiting > 1:
            self._unshared.add(most)
            self._interrupt({most})
            self._ask(most, give_back=waiting // 2)

    def _pass_on(self, giver: int, specs: Sequence[EpisodeSpec]) -> None:
        """Hand what a worker has given back to the one that owes least."""
        self._unshared.discard(giver)
        taker = min(self._pool.ready, key=lambda worker: len(self._owed[worker]))
        self._owed[taker].update({_key(spec): spec for spec in specs})
        self._meter.passed_on += len(specs)
        self._interrupt({taker})
        self._resume()

    def _resume(self, begin: bool = True) -> None:
        """Ask every worker that is ready, owes episodes and has no open call."""
        idle = {*self._pool.ready} - self._asked()
        for worker, owed in enumerate(self._owed):
            if owed and worker in idle:
                self._ask(worker, begin)

    def _ask(self, worker: int, begin: bool = True, give_back: int = 0) -> None:
        ask = _playing([*self._owed[worker].values()], self._sampling, begin, give_back)
        self._calls[self._pool.ask(worker, ask)] = _Call(worker)

    def _asked(self) -> set[int]:
        """The workers that have an open call."""
        return {call.worker for call in self._calls.values()}

    def _interrupt(self, workers: Container[int] | None = None) -> None:
        """All workers, or these, end their calls after a step. What has not arrived comes again in the next call."""
        ended = {
            asked: call.begun
            for asked, call in self._calls.items()
            if workers is None or call.worker in workers
        }
        cancel(ended, self._deadline())
        for asked in ended:
            del self._calls[asked]

    def _deadline(self) -> float:
        return time.monotonic() + self._cfg.rollout.timeout_s


class _Meter:
    """Where the time of workers and learner goes."""

    def __init__(self, workers: int) -> None:
        self.waited = 0.0  # seconds in which the learner waited for episodes
        self._began, self._engine = time.monotonic(), 0.0
        self._reported = [0.0] * workers  # what each worker reported last
        self._replayed = 0
        self.passed_on = 0  # episodes that were given back, for another worker

    def joined(self) -> None:
        """There is another worker."""
        self._reported.append(0.0)

    def worked(self, worker: int, engine_seconds: float) -> None:
        """A worker reports the seconds of its engine so far."""
        self._engine += engine_seconds - self._reported[worker]
        self._reported[worker] = engine_seconds

    def lost(self, worker: int, episodes: int) -> None:
        """A worker was replaced, and its successor, whose engine begins at 0 s, plays so many episodes."""
        self._reported[worker] = 0.0
        self._replayed += episodes

    def lap(self) -> dict[str, float]:
        """The measurements since the last lap."""
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        idle = 1.0 - self._engine / (seconds * len(self._reported))
        measured = {
            "streaming/engines_idle": min(1.0, max(0.0, idle)),
            "streaming/learner_waits": min(1.0, self.waited / seconds),
            "streaming/replayed": float(self._replayed),
            "streaming/passed_on": float(self.passed_on),
        }
        self._began, self._engine, self.waited, self._replayed, self.passed_on = now, 0.0, 0.0, 0, 0
        return measured


def staleness(batch: Sequence[Trajectory], live: int, bound: int) -> dict[str, float]:
    """Updates between the oldest turn of each episode and the version `live`: mean and largest over the batch.

    Raises RolloutError if one exceeds `bound`, naming the episode.
    """
    ages = []
    for trajectory in batch:
        if trajectory.policy_version is None:
            continue
        ages.append(live - trajectory.policy_version)
        if ages[-1] > bound:
            raise RolloutError(
                f"Episode {trajectory.episode} of iteration {trajectory.iteration} has a turn of a policy {ages[-1]}"
                f" updates old; rollout.max_staleness={bound} allows no more. This is an error of rlpost."
            )
    return {"staleness/mean": sum(ages) / max(1, len(ages)), "staleness/max": float(max(ages, default=0))}


def _key(spec: EpisodeSpec) -> Key:
    return spec.iteration, spec.episode


def _playing(owed: list[EpisodeSpec], sampling: Sampling, begin: bool, give_back: int) -> Ask:
    """A call that asks a worker to go on playing, and to stream what ends."""
    return lambda actor: actor.play.options(num_returns="streaming").remote(owed, sampling, begin, give_back)
