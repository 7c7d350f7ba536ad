"""What the texts of all environments share."""

from __future__ import annotations

import string

ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation + " \n")
"""The characters that Gymnasium's text spaces list; any string may be given to `step` all the same."""


def retry(feedback: str) -> str:
    """The user turn after a failed attempt."""
    return f"You failed this trial because {feedback} Try again."
