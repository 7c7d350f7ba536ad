"""The types of a corpus: conversations, and mixtures of tasks that write them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A user text and the assistant's answer. `learn` is False for a wrong attempt, which is only context."""

    user: str
    assistant: str
    learn: bool = True


Conversation = tuple[Message, ...]
Task = Callable[[random.Random], Conversation]
Mixture = tuple[tuple[Task, float], ...]  # tasks with their shares of the conversations


def draw(mixture: Mixture, rng: random.Random) -> Conversation:
    """Draw one conversation of the mixture."""
    tasks, weights = zip(*mixture, strict=True)
    return rng.choices(tasks, weights)[0](rng)
