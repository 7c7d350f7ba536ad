"""What the doctor says: findings with their remedies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    ok = "ok"
    warning = "warning"  # a run works, but slowly or not everywhere
    error = "error"  # a run would fail


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A warning or an error has a remedy."""

    what: str
    level: Level
    text: str
    remedy: str = ""
    node: str = ""  # the node's name and address; empty for the machine of the command

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.level is not Level.ok), f"{self.what}: a fault needs a remedy"


def ok(what: str, text: str, node: str = "") -> Finding:
    return Finding(what, Level.ok, text, node=node)


def warning(what: str, text: str, remedy: str, node: str = "") -> Finding:
    return Finding(what, Level.warning, text, remedy, node)


def error(what: str, text: str, remedy: str, node: str = "") -> Finding:
    return Finding(what, Level.error, text, remedy, node)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if a run would fail, else 0."""
    return int(any(finding.level is Level.error for finding in findings))
