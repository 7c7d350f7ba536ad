"""Makes texts of models, environments and records, which may contain anything, safe to print on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with terminal control characters replaced by a mark, and what is not UTF-8 by `?`."""
    return _CONTROL.sub("\ufffd", text).encode(errors="replace").decode()
