"""error.json in a run's folder: the error that ended the run, for programs to read. The console shows the same error.

A run that was stopped (Ctrl-C, SIGTERM) or killed writes none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rlpost.errors import OutputError, RlpostError
from rlpost.record.files import write_atomic, writing

FILE = "error.json"
_REMEDY = "remedy:"  # starts the last part of a message, see rlpost.errors


@dataclass(frozen=True)
class RunError:
    """An exception as data. `type` is the name of its class; `message` and `remedy` are lines without indentation."""

    type: str
    message: tuple[str, ...]
    remedy: tuple[str, ...]  # empty if the message names none

    @classmethod
    def of(cls, error: Exception) -> RunError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not isinstance(error, RlpostError):
            # An actor's exception (RayTaskError) has its whole traceback as its text; the last line says what happened.
            return cls(type(error).__name__, tuple(lines[-1:]), ())
        split = next((i for i, line in enumerate(lines) if line.startswith(_REMEDY)), len(lines))
        return cls(type(error).__name__, tuple(lines[:split]), tuple(lines[split:]))

    def __str__(self) -> str:
        """The error in one line: `LearnerError: worker 0 died; remedy: ...`."""
        return f"{self.type}: {'; '.join((*self.message, *self.remedy))}"


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Remove the error of an earlier start, and write the error that ends this start, if any.

    Raises OutputError if the earlier error.json cannot be removed.
    """
    path = folder / FILE
    with writing(path):
        path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        # A full disk may be the very error, which is the one to report.
        with contextlib.suppress(OutputError):
            write_atomic(path, (json.dumps(asdict(RunError.of(error)), indent=2) + "\n").encode())
        raise


def read(folder: Path) -> RunError | None:
    """The error that `kept` wrote; None if there is none. Raises OutputError if `kept` did not write the file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_bytes())
        return RunError(
            str(fields["type"]), tuple(map(str, fields["message"])), tuple(map(str, fields["remedy"]))
        )
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{path}\n  reason: it cannot be read ({error})\n  remedy: delete it") from error
