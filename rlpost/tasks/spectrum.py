"""What the update did to the spectrum of the weights: a few scalars an iteration, and spectrum.json at the end."""

from __future__ import annotations

from rlpost.record import spectrum as record
from rlpost.tasks.session import Session
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import base_weights
from rlpost.weights.spectrum import RUN_BUDGET, Search, course, measure


def on_the_way(session: Session) -> dict[str, float]:
    """Norm and ranks of the adapter that the engines took last, for the line of an iteration.

    Empty for kinds without factors (DoRA), whose singular values take a full decomposition of each weight.
    """
    with session.clock.phase("spectrum"):
        return _named(course(Adapter.load(session.run_dir.adapter), session.model_folder))


def at_the_end(session: Session, axis: str, finished: int) -> None:
    """Measure everything, intruders in as many layers as RUN_BUDGET allows, into spectrum.json and metrics.jsonl.

    `axis`: the trackers' key for the number of steps `finished`.
    """
    session.progress.stage("spectrum of the update")
    with session.clock.phase("spectrum"):
        adapter = Adapter.load(session.run_dir.adapter)
        base = base_weights(session.model_folder, adapter.base)
        found = measure(adapter, base, Search(budget=RUN_BUDGET), session.cfg.dtype.value)
        record.write(found, session.run_dir.path)
    measured = _named(found.totals())
    session.tracker.log({axis: float(finished), **measured}, over=axis)
    session.book("after", measured)


def _named(totals: dict[str, float]) -> dict[str, float]:
    return {f"spectrum/{name}": value for name, value in totals.items()}
