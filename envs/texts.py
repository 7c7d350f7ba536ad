"""Texts and text spaces that all environments share."""

from __future__ import annotations

import string

from gymnasium.spaces import Text

from rlpost.envs.messages import messages_of

ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation + " \n")
"""The characters that Gymnasium's text spaces list. `step` accepts any string."""


class AnyText(Text):
    """Texts of any characters. Gymnasium's own space has a fixed set; the texts of users and models do not."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=ASCII)

    def contains(self, x: object) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class AnySaid(AnyText):
    """The observations of an environment that sends texts or messages, of at most `max_length` characters in all."""

    def contains(self, x: object) -> bool:
        try:
            messages = messages_of(x)  # type: ignore[arg-type]  # anything may be asked of a space
        except (TypeError, ValueError):
            return False
        return sum(len(message.text) for message in messages) <= self.max_length


def retry(feedback: str) -> str:
    """The user turn after a failed attempt."""
    return f"You failed this trial because {feedback} Try again."


UNEXPLAINED = "the answer is wrong."
"""The feedback on a failed attempt under a fake rule: any more would tell the rule that scores."""
