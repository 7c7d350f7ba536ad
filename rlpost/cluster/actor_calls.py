"""All waits for actors: each has a deadline, and the first failure ends the wait with an error that names the actor.

A call of an actor's method has one answer, or, with num_returns="streaming", one for each value that it yields.
The deadline is one of time.monotonic for all calls that are asked together, however many answers come before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import ray
from ray import exceptions as ray_errors

from rlpost.cluster import capacity
from rlpost.errors import ClusterError, RlpostError

Asked: TypeAlias = ray.ObjectRef | ray.ObjectRefGenerator
"""A pending call of an actor, with one answer or a stream of answers."""

FENCE_S = 10.0  # in which Ray confirms that an actor it was told to kill is dead
BEGINS_S = 10.0  # in which a stream that is to be cancelled begins
_FENCE_CHECK_S = 0.1
_CHECK_S = 1.0  # how often a wait looks at something else
_FETCH_S = (
    10.0  # in which an answer that has been given arrives, even after its deadline: a busy caller comes late
)
# Ray raises these, besides RayActorError, for calls whose process or whose answer was lost with a node.
_LOST = (
    ray_errors.NodeDiedError,
    ray_errors.ObjectLostError,
    ray_errors.OutOfMemoryError,
    ray_errors.WorkerCrashedError,
)


class ActorLostError(ClusterError):
    """An actor's process died or cannot be reached. Once it is killed, a new actor may take its place."""


class DeadlineError(ClusterError):
    """An actor did not answer in time."""


def get(ref: ray.ObjectRef, timeout_s: float, who: str) -> Any:
    """Wait for one answer; see get_all."""
    return get_all([ref], timeout_s, [who])[0]


def get_all(refs: Sequence[ray.ObjectRef], timeout_s: float, who: Sequence[str]) -> list[Any]:
    """Wait until every actor named in `who` has answered, and return the answers in order.

    The first failure ends the wait, since the other actors may be waiting for the one that failed.

    Raises:
        DeadlineError: not all actors answered within `timeout_s` seconds; names those that did not.
        ActorLostError: an actor's process died; names it.
        ClusterError: Ray itself failed.
        RlpostError: an actor raised it on purpose; it is passed on unchanged. Other exceptions of an actor arrive as
            Ray's RayTaskError, with the actor's traceback.
    """
    names = dict(zip(refs, who, strict=True))
    answers = {ref: _value(ref, _FETCH_S, names[ref]) for ref in _as_they_come(refs, timeout_s)}
    if silent := [Wait.beginning(names[ref], timeout_s) for ref in refs if ref not in answers]:
        raise late(silent)
    return [answers[ref] for ref in refs]


@dataclass(frozen=True)
class Wait:
    """Who was asked, how many seconds the answer may take, and the time of time.monotonic at which these are over."""

    who: str
    seconds: float
    deadline: float

    @classmethod
    def beginning(cls, who: str, seconds: float) -> Wait:
        """A wait that begins now."""
        return cls(who, seconds, time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline


def first_answered(waits: Mapping[Asked, Wait], meanwhile: Callable[[], None]) -> Asked | None:
    """The first call to get an answer, to fail or, if it is a stream, to end. None if the earliest deadline passes.

    The deadline of a stream covers all its answers. `meanwhile` is called at least once a second; what it raises ends
    the wait.
    """
    earliest = min(wait.deadline for wait in waits.values())
    while True:
        meanwhile()
        left = earliest - time.monotonic()
        done, _ = ray.wait(list(waits), num_returns=1, timeout=min(max(0.0, left), _CHECK_S))
        if done:
            return done[0]
        if left <= 0:
            return None


def late(waits: Iterable[Wait]) -> DeadlineError:
    """The error for calls that were not answered in time. It names them all."""
    by_seconds = groupby(sorted(waits, key=lambda wait: wait.seconds), key=lambda wait: wait.seconds)
    silent = (_silence([wait.who for wait in group], seconds) for seconds, group in by_seconds)
    return DeadlineError(f"{' '.join(silent)} Free now: {capacity.summary()}.")


def take(asked: Asked, who: str) -> tuple[list[Any], bool]:
    """The answer that `first_answered` found, and whether it is the last. A stream that has ended gives no answer.

    Raises like get_all. If an actor dies, the values that it yielded and nobody took are lost.
    """
    if isinstance(asked, ray.ObjectRefGenerator):
        try:
            return [_value(next(asked), _FETCH_S, who)], False
        except StopIteration:
            return [], True
    return [_value(asked, _FETCH_S, who)], True


def fence(actor: Any, who: str) -> None:
    """Kill an actor that was lost, and wait until Ray says that it is dead. Only then may another take its place.

    An actor that Ray merely cannot reach would go on computing, and keep its CPUs and its GPU. Raises ClusterError if
    Ray does not confirm the death within FENCE_S.
    """
    ray.kill(actor)
    deadline = time.monotonic() + FENCE_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            get(actor.__ray_ready__.remote(), left, who)
        except DeadlineError:
            break
        except ActorLostError as error:
            if not isinstance(error.__cause__, ray_errors.ActorUnavailableError):
                return
        time.sleep(_FENCE_CHECK_S)
    raise ClusterError(f"{who} was killed, but Ray does not say within {FENCE_S:g} s that it is dead.")


class Heartbeats:
    """Notices the deaths of actors from which no answer is awaited, within seconds.

    Each actor has one pending call that does nothing. It is answered when the actor is idle, and made again a second
    later; it fails when the actor dies, busy or not. It costs an idle actor a call a second.
    """

    def __init__(self, actors: Mapping[str, Any]) -> None:
        """`actors` by name."""
        self._actors, self._pending = dict(actors), dict[ray.ObjectRef, str]()
        self._next = time.monotonic()

    def check(self) -> None:
        """Return at once. Raises ActorLostError if an actor is dead."""
        if not self._actors or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _CHECK_S
        asked = set(self._pending.values())
        for who, actor in self._actors.items():
            if who not in asked:
                self._pending[actor.__ray_ready__.remote()] = who
        answered, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0.0)
        for ref in answered:
            _value(ref, _FETCH_S, self._pending.pop(ref))


def cancel(asked: Mapping[Asked, bool], deadline: float) -> None:
    """Cancel the streams among calls that nobody waits for. They run on, unless their methods check `is_cancelled`.

    `asked` says of each call whether an answer was taken, so it has begun. Until `deadline`, in time.monotonic, the
    others are given time to give their first answer, BEGINS_S at most; so a method should give one at once. For Ray can
    lose the place of a call that it cancels before the actor has begun it: the actor then waits 30 s for that call, and
    refuses all later ones.
    """
    streams = [each for each in asked if isinstance(each, ray.ObjectRefGenerator)]
    if not streams or not ray.is_initialized():
        return
    if silent := [each for each in streams if not asked[each]]:
        left = max(0.0, deadline - time.monotonic())
        ray.wait(silent, num_returns=len(silent), timeout=min(left, BEGINS_S))
    for each in streams:
        ray.cancel(each)


def is_cancelled() -> bool:
    """Whether the caller has cancelled the current call. To be used in an actor's method."""
    return bool(ray.get_runtime_context().is_canceled())


def watch_for_deaths(refs: Sequence[ray.ObjectRef], timeout_s: float, who: Sequence[str]) -> None:
    """Raise ActorLostError if an actor is dead, or dies before it answers, within `timeout_s` seconds.

    It is meant for use after another failure, so it ignores what the actors return or raise.
    """
    names = dict(zip(refs, who, strict=True))
    for ref in _as_they_come(refs, timeout_s):
        try:
            _value(ref, _FETCH_S, names[ref])
        except ActorLostError:
            raise
        except (ray_errors.RayTaskError, RlpostError):
            continue


def _as_they_come(refs: Sequence[ray.ObjectRef], timeout_s: float) -> Iterator[ray.ObjectRef]:
    """The calls that are answered or have failed within `timeout_s` seconds, in order of time."""
    deadline = time.monotonic() + timeout_s
    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            return
        yield done[0]


def _value(ref: ray.ObjectRef, timeout_s: float, who: str) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray_errors.RayTaskError as error:
        if isinstance(error.cause, RlpostError):
            raise error.cause from None
        raise
    except ray_errors.ActorUnavailableError as error:
        raise ActorLostError(f"{who} cannot be reached: {_gist(error)}") from error
    except ray_errors.RayActorError as error:
        raise ActorLostError(f"{who} died: {_gist(error)}") from error
    except _LOST as error:
        raise ActorLostError(f"{who} was lost: {_gist(error)}") from error
    except ray_errors.GetTimeoutError as error:
        raise DeadlineError(f"The answer of {who} did not arrive within {timeout_s:g} s.") from error
    except ray_errors.RayError as error:
        raise ClusterError(f"{who} failed: {_gist(error)}") from error


def _silence(names: Sequence[str], timeout_s: float) -> str:
    return f"No answer within {timeout_s:g} s from: {', '.join(names)}."


def _gist(error: Exception) -> str:
    """The last line of Ray's long message, which says what happened, without the advice that Ray adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes include")[0] if lines else type(error).__name__
