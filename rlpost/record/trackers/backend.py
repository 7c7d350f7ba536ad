"""The interface of a service that shows metrics, for `rlpost.record.tracking`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

DEADLINE_S = 60  # for a service's start, and for its last uploads

_OTHER = re.compile(r"[^\w\-./]")


class Backend(Protocol):
    """One run in one service. Any method may raise anything: the caller then goes on without the service."""

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        """Send metrics, each a series over the key `over` of theirs, a whole number."""

    def finish(self) -> None:
        """Send what is left and end; called once. Raises TimeoutError after DEADLINE_S."""


def plain_name(key: str) -> str:
    """`key` for services that accept letters, digits and -._/ only. Others become their code: `_40_` for @."""
    return _OTHER.sub(lambda found: f"_{ord(found[0]):x}_", key)
