"""The one way to wait for an actor: with a deadline, and the first failure ends the wait and names who failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from rlpost.errors import ClusterError, RlpostError


class ActorLostError(ClusterError):
    """An actor's process died; a new one may take its place."""


class DeadlineError(ClusterError):
    """An actor did not answer in time."""


def get(ref: ray.ObjectRef, timeout_s: float, who: str) -> Any:
    """One answer; see get_all."""
    return get_all([ref], timeout_s, [who])[0]


def get_all(refs: Sequence[ray.ObjectRef], timeout_s: float, who: Sequence[str]) -> list[Any]:
    """Wait until every actor named in `who` has answered, and return the answers in order.

    The first failure ends the wait, since the others may be waiting for the one that failed.

    Raises:
        DeadlineError: not all answered within `timeout_s` seconds; names those that did not.
        ActorLostError: an actor's process died; names it.
        ClusterError: Ray itself failed.
        RlpostError: what an actor raised on purpose, as it raised it. Any other exception of an actor comes as
            Ray's RayTaskError, with the actor's traceback.
    """
    names = dict(zip(refs, who, strict=True))
    answers = {ref: _value(ref, timeout_s, names[ref]) for ref in _as_they_come(refs, timeout_s)}
    if silent := [names[ref] for ref in refs if ref not in answers]:
        raise DeadlineError(f"No answer within {timeout_s:g} s from: {', '.join(silent)}. {_load()}")
    return [answers[ref] for ref in refs]


def watch_for_deaths(refs: Sequence[ray.ObjectRef], timeout_s: float, who: Sequence[str]) -> None:
    """Raise ActorLostError if an actor is dead or dies before it answers, within `timeout_s` seconds.

    For after another failure: what the actors answer or raise is passed over.
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
    """Those that are answered, or failed, within `timeout_s` seconds, the first one first."""
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
    except ray_errors.RayActorError as error:
        raise ActorLostError(f"{who} died: {_gist(error)}") from error
    except ray_errors.GetTimeoutError as error:
        raise DeadlineError(f"The answer of {who} did not arrive within {timeout_s:g} s.") from error
    except ray_errors.RayError as error:
        raise ClusterError(f"{who} failed: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """The line of Ray's long message that says what happened: the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _load() -> str:
    free = ray.available_resources()
    return f"Free now: {free.get('CPU', 0.0):g} CPUs, {free.get('GPU', 0.0):g} GPUs."
