"""Environments in which a program asks the model: it says which conversation is to be answered, whole, each time.

    start() ─▶ Heard(request) ─▶ the model samples ─▶ answered(answer) ─▶ Heard(request) ─▶ ... ─▶ Heard(over)
                                  not possible     ─▶ refused(refusal) ─▶ Heard(...)

An ordinary environment is only ever appended to. Here the rollout finds out what of a conversation it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"  # OpenAI's name


@dataclass(frozen=True)
class Request:
    """A conversation to be answered. Settings that are none are the run's."""

    # As chat templates take them: role, content (text), maybe tool_call_id.
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # OpenAI's form
    max_tokens: int | None = None  # of the answer
    temperature: float | None = None
    stop: tuple[str, ...] | None = None  # texts that end an answer


@dataclass(frozen=True)
class Answer:
    """What the model said, exactly as it was sampled."""

    text: str
    prompt_ids: tuple[int, ...] = ()  # what the engine was given
    token_ids: tuple[int, ...] = ()  # the end-of-turn token included when the model wrote it
    logprobs: tuple[float, ...] = ()  # one a token, of the distribution drawn from
    tokens: tuple[str, ...] = ()  # each token's text by itself
    stopped: bool = True  # False: cut at max_tokens or where the context was full


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered. `param` is the field at fault, `code` a word for programs."""

    message: str
    param: str | None = None
    code: str | None = None


class Over(StrEnum):
    """How an episode ended that did not fail; values of rlpost.types.Ending."""

    TERMINATED = "terminated"  # the program came to its end
    TRUNCATED = "truncated"  # it gave up when its calls were used up
    CONTEXT_FULL = "context_full"  # it gave up when a conversation did not fit the model's context


@dataclass(frozen=True)
class Heard:
    """What the program did next: it made a request, or the episode is over, with a reward."""

    request: Request | None
    over: Over = Over.TERMINATED
    reward: float = 0.0
    outcome: str = "CONTINUED"
    success: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)  # of the reward, by name, where it has several


@runtime_checkable
class Asking(Protocol):
    """An environment, reset before, whose program asks. Each method raises what the program failed with."""

    def start(self) -> Heard:
        """Start the program; what it asks first."""

    def answered(self, answer: Answer) -> Heard:
        """Hand the answer to the request heard last over; what comes next."""

    def refused(self, refusal: Refusal) -> Heard:
        """Refuse the request heard last; what comes next."""
