"""Brings the logs of a run's workers from the nodes of a joined cluster into the run directory, if the run fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from rlpost.cluster import capacity
from rlpost.cluster.node_tasks import Failure, ask_each

TAIL = 256 * 2**10  # bytes of a file, from its end
MOST = 8 * 2**20  # bytes of a node, the newest files first
FETCHING_S = 30.0  # deadline for all nodes together


@contextlib.contextmanager
def fetched_after_failure(target: Path) -> Iterator[None]:
    """If the body fails, write the end of each worker's log to `target`/NODE-ADDRESS/.

    Raises nothing of its own, so that the error that matters is shown. Of nodes that are gone there are no logs.
    """
    try:
        yield
    except Exception:
        with contextlib.suppress(Exception):
            _fetch(target)
        raise


def _fetch(target: Path) -> None:
    job = ray.get_runtime_context().get_job_id()
    for node, files in ask_each(capacity.nodes(), logs_here, job, timeout_s=FETCHING_S).items():
        folder = target / f"{node.name}-{node.address.replace(':', '_')}"
        if isinstance(files, Failure):
            files = {"not-fetched.txt": files.reason.encode()}
        for name, tail in files.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(tail)


def logs_here(job: str) -> dict[str, bytes]:
    """The end of the logs of the job's workers on this node, by file name; runs in a worker there."""
    # Ray has no public name for the folder.
    return tails(Path(ray._private.worker._global_node.get_logs_dir_path()), job)


def tails(folder: Path, job: str) -> dict[str, bytes]:
    """The last TAIL bytes of each of the job's files that is not empty, newest first, at most MOST together."""
    files = [path for end in ("out", "err") for path in folder.glob(f"worker-*-{job}-*.{end}")]
    found, total = dict[str, bytes](), 0
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            tail = file.read(TAIL)
        total += len(tail)
        if total > MOST:
            break
        if tail:
            found[path.name] = tail
    return found
