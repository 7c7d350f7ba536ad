"""Environments in which a program asks the model. Each request contains the whole conversation to be answered.

    start() ─▶ Heard(request) ─▶ the model samples ─▶ answered(answer) ─▶ Heard(request) ─▶ ... ─▶ Heard(over)
                                  not possible     ─▶ refused(refusal) ─▶ Heard(...)

The conversation of an ordinary environment is only ever appended to. Here the rollout finds out which part is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"  # OpenAI's name for it


@dataclass(frozen=True)
class Request:
    """A conversation to be answered. For settings that are None, the run's are used."""

    # As chat templates take them: role, content (text), possibly tool_call_id.
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # in OpenAI's form
    max_tokens: int | None = None  # limit for the answer
    temperature: float | None = None
    stop: tuple[str, ...] | None = None  # texts that end an answer


@dataclass(frozen=True)
class Answer:
    """The model's answer, exactly as it was sampled."""

    text: str
    prompt_ids: tuple[int, ...] = ()  # the engine's input
    token_ids: tuple[int, ...] = ()  # with the end-of-turn token if the model wrote it
    logprobs: tuple[float, ...] = ()  # one per token, of the distribution that is drawn from
    tokens: tuple[str, ...] = ()  # the text of each single token
    stopped: bool = True  # False: cut at max_tokens, or because the context was full


@dataclass(frozen=True)
class Refusal:
    """The reason why a request is not answered. `param` is the wrong field, `code` a word for programs."""

    message: str
    param: str | None = None
    code: str | None = None


class Over(StrEnum):
    """The ending of an episode that did not fail; values of rlpost.types.Ending."""

    TERMINATED = "terminated"  # the program ended normally
    TRUNCATED = "truncated"  # it gave up when its calls were used up
    CONTEXT_FULL = "context_full"  # it gave up when a conversation did not fit the model's context


@dataclass(frozen=True)
class Heard:
    """The program's next step: it made a request, or the episode is over, with a reward."""

    request: Request | None
    over: Over = Over.TERMINATED
    reward: float = 0.0
    outcome: str = "CONTINUED"
    success: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)  # parts of the reward by name, if it has several


@runtime_checkable
class Asking(Protocol):
    """An environment, already reset, whose program asks. Each method raises the program's error if it failed."""

    def start(self) -> Heard:
        """Start the program; return its first request."""

    def answered(self, answer: Answer) -> Heard:
        """Deliver the answer to the last request; return what follows."""

    def refused(self, refusal: Refusal) -> Heard:
        """Refuse the last request; return what follows."""
