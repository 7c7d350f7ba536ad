"""What the verbs' command lines share: errors in a sentence, and the same exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from rlpost.errors import ConfigError, RlpostError

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work; 0 done, 1 failed with a stated reason, 2 refused settings, 130 Ctrl-C, or what `work` returns."""
    try:
        return work() or 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except RlpostError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def printable(text: str) -> str:
    """`text` without what a terminal obeys: a record, a model and an environment may write anything."""
    return _CONTROL.sub("\ufffd", text).encode(errors="replace").decode()
