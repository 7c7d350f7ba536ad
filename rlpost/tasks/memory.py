"""Host memory of rollout workers and learner ranks, an iteration at a time: figures, a warning, a worker replaced.

A worker above rollout.recycle_mib is replaced between iterations by a new one with the live adapter. Equal batches give
equal episodes, whichever process plays them, so the results are those of a run without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlpost.cluster.memory import Memory
from rlpost.config.keys import refusal
from rlpost.errors import ConfigError
from rlpost.record.memory_growth import Growth
from rlpost.tasks.session import Session


def refuse_small_limit(session: Session) -> None:
    """Raise ConfigError if a worker that has not played for training yet is above rollout.recycle_mib."""
    limit = session.cfg.rollout.recycle_mib
    largest = max((each.mib for each in session.pool.memory().values()), default=0.0) if limit else 0.0
    if limit and largest >= limit:
        reason = f"a rollout worker has {largest:.0f} MiB before the first iteration, so all would be replaced after it"
        remedy = f"give clearly more than {largest:.0f}, or 0 to replace none"
        raise ConfigError(refusal("rollout.recycle_mib", limit, reason, remedy))


def look(session: Session) -> dict[str, float]:
    """Measure every process, warn of steady growth, and replace workers that are too large. Returns the figures."""
    with session.clock.phase("memory"):
        workers, ranks = session.pool.memory(), session.learner.memory()
    processes = {f"rollout_{i}": each for i, each in sorted(workers.items())}
    processes |= {f"learner_{rank}": each for rank, each in enumerate(ranks)}
    figures: dict[str, float] = {}
    for name, memory in processes.items():
        figures[f"memory/{name}/rss"] = memory.rss
        if memory.pss is not None:
            figures[f"memory/{name}/pss"] = memory.pss
        _warn(session, name, memory)
    return figures | _recycled(session, workers)


def _warn(session: Session, name: str, memory: Memory) -> None:
    """Print a note if the process has grown steadily. A new process under the same name starts anew."""
    growth = session.growth.get(name)
    if growth is None or growth.pid != memory.pid:
        growth = session.growth[name] = Growth(memory.pid)
    if rate := growth.see(memory.mib):
        way = (
            "rollout.recycle_mib replaces it"
            if name.startswith("rollout")
            else "resume= starts a new process"
        )
        session.progress.note(
            f"{name} grows steadily, by {rate:.1f} MiB an iteration, and has {memory.mib:.0f} MiB; {way}"
        )


def _recycled(session: Session, workers: Mapping[int, Memory]) -> dict[str, float]:
    """Replace the workers above the limit; counted if there is a limit."""
    limit = session.cfg.rollout.recycle_mib
    if not limit:
        return {}
    large = [i for i, memory in sorted(workers.items()) if memory.mib >= limit]
    with session.clock.phase("recycle"):
        for i in large:
            session.pool.recycle(i)
            session.progress.note(f"rollout_{i} was replaced at {workers[i].mib:.0f} MiB")
    return {"memory/recycled": float(len(large))}
