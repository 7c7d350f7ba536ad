"""A refusal of what an environment was asked to be, with what to do about it."""

from __future__ import annotations


class Refused(ValueError):
    """An environment or an argument that cannot be had. Its text is the reason, then the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class UnknownEnvironment(Refused):
    """There is no environment of that name, or it cannot be imported; its arguments are not at fault."""
