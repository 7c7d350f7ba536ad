"""A refusal of what an environment was asked to be, with what to do about it."""

from __future__ import annotations


class Refused(ValueError):
    """An environment or an argument that cannot be had. Its text is the reason, then the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def hint(error: BaseException | None) -> str:
    """What to know of an error that only comes where episodes are played; empty for any other."""
    while error is not None:
        if "signal only works in main thread" in str(error):
            return (
                " (environments and scorers run in threads of their own, where signals such as signal.alarm do not"
                " work; leave them out: every call has a deadline, rollout.env_timeout_s)"
            )
        error = error.__cause__ or error.__context__
    return ""


class UnknownEnvironment(Refused):
    """There is no environment of that name, or it cannot be imported; its arguments are not at fault."""
