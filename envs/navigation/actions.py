"""The three actions, as text and as data."""

from __future__ import annotations

import re
from typing import NamedTuple


class Action(NamedTuple):
    name: str
    word: str = ""  # the word of a turn

    def __str__(self) -> str:
        return f"{self.name}({self.word})"


FORWARD = Action("forward")
STOP = Action("stop")
TURN = "turn_direction"

_CALL = re.compile(
    r"""\s*(?:(?P<plain>forward|stop)\s*\(\s*\)|turn_direction\s*\(\s*['"]?(?P<word>[a-z]+(?: [a-z]+)?)['"]?\s*\))\s*"""
)


def turned(word: str) -> Action:
    return Action(TURN, word)


def read_action(text: str) -> Action | None:
    """The action in a text, in either case, with spaces or quotes inside the parentheses; None if there is none."""
    match = _CALL.fullmatch(text.lower())
    if match is None:
        return None
    return Action(match["plain"]) if match["plain"] else turned(match["word"])
