"""teacher.json: which teacher a run learns from (`algo.teacher`), by the fingerprint of its files.

A checkpoint does not contain the teacher. A resumed run reads it again from `algo.teacher`, which may name another
place, and must find the same files there.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlpost.errors import CheckpointError
from rlpost.record.files import write_atomic

FILE = "teacher.json"


def keep(run_dir: Path, teacher: str, fingerprint: str) -> None:
    """Record the teacher of a new run, or compare it with the one on record.

    Raises CheckpointError for another teacher, or if the record cannot be read.
    """
    check(run_dir, teacher, fingerprint)
    record = {"teacher": teacher, "fingerprint": fingerprint}
    write_atomic(run_dir / FILE, (json.dumps(record, indent=2) + "\n").encode())


def check(run_dir: Path, teacher: str, fingerprint: str) -> None:
    """Compare a teacher with the one on record, if there is one. Raises CheckpointError like `keep`."""
    path = run_dir / FILE
    if path.is_file() and (recorded := _recorded(path)) != fingerprint:
        raise CheckpointError(
            f"algo.teacher={teacher}\n  reason: the run learnt from another teacher until now (fingerprint"
            f" {recorded[:12]}, and these files have {fingerprint[:12]})\n"
            "  remedy: name a folder with the teacher's own files, or start a new run"
        )


def _recorded(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}\n  reason: it cannot be read ({error})\n  remedy: restore it from a copy"
        ) from error
