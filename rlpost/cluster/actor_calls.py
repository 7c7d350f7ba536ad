"""All waits for actors: each has a deadline, and the first failure ends the wait with an error that names the actor.

A call of an actor's method has one answer, or, with num_returns="streaming", one for each value that it yields.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import ray
from ray import exceptions as ray_errors

from rlpost.errors import ClusterError, RlpostError

Asked: TypeAlias = ray.ObjectRef | ray.ObjectRefGenerator
"""A pending call of an actor, with one answer or a stream of answers."""


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
    answers = {ref: _value(ref, timeout_s, names[ref]) for ref in _as_they_come(refs, timeout_s)}
    if silent := [names[ref] for ref in refs if ref not in answers]:
        raise _silent(silent, timeout_s)
    return [answers[ref] for ref in refs]


def first_answered(deadlines: Mapping[Asked, float], timeout_s: float, who: Mapping[Asked, str]) -> Asked:
    """The first call to get an answer, to fail or, if it is a stream, to end. Waits until the earliest deadline.

    Deadlines are times of time.monotonic, `timeout_s` seconds after each call; the deadline of a stream covers all its
    answers. Raises DeadlineError, naming all calls whose deadline has passed.
    """
    earliest = min(deadlines.values())
    done, _ = ray.wait(list(deadlines), num_returns=1, timeout=max(0.0, earliest - time.monotonic()))
    if done:
        return done[0]
    late = max(earliest, time.monotonic())
    raise _silent([who[ref] for ref, deadline in deadlines.items() if deadline <= late], timeout_s)


def take(asked: Asked, timeout_s: float, who: str) -> tuple[list[Any], bool]:
    """The answer that `first_answered` found, and whether it is the last. A stream that has ended gives no answer.

    Raises like get_all. If an actor dies, the values that it yielded and nobody took are lost.
    """
    if isinstance(asked, ray.ObjectRefGenerator):
        try:
            return [_value(next(asked), timeout_s, who)], False
        except StopIteration:
            return [], True
    return [_value(asked, timeout_s, who)], True


def cancel(asked: Iterable[Asked]) -> None:
    """Cancel calls that nobody waits for. One that has begun runs on, unless its method checks `is_cancelled`."""
    for each in asked if ray.is_initialized() else ():
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
            _value(ref, timeout_s, names[ref])
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
    except ray_errors.GetTimeoutError as error:
        raise DeadlineError(f"The answer of {who} did not arrive within {timeout_s:g} s.") from error
    except ray_errors.RayError as error:
        raise ClusterError(f"{who} failed: {_gist(error)}") from error


def _silent(names: Sequence[str], timeout_s: float) -> DeadlineError:
    return DeadlineError(f"No answer within {timeout_s:g} s from: {', '.join(names)}. {_load()}")


def _gist(error: Exception) -> str:
    """The last line of Ray's long message, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _load() -> str:
    free = ray.available_resources()
    return f"Free now: {free.get('CPU', 0.0):g} CPUs, {free.get('GPU', 0.0):g} GPUs."
