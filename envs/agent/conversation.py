"""Connects the threads of one episode: requests of the program, the answers, and the program's end."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from rlpost.envs.asking import Answer, Refusal, Request

_SLICE_S = 0.05  # seconds of waiting, after which an abandoned thread notices


@dataclass(frozen=True)
class Reward:
    """The posted reward. `success` is None if the program did not say."""

    reward: float
    success: bool | None = None


@dataclass(frozen=True)
class End:
    """The end of the program: its return value, or the error with which it failed."""

    returned: object = None
    error: str | None = None


@dataclass(frozen=True)
class Pending:
    """A request and the place for its answer."""

    request: Request
    reply: Future[Answer | Refusal]


class Conversation:
    """One episode's requests, in order of arrival. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Pending] = deque()
        self._asked: Pending | None = None
        self._end: End | None = None
        self._closed = False
        self.posted: Reward | None = None

    def ask(self, request: Request) -> Future[Answer | Refusal]:
        """Called by the program: the future answer. It is cancelled if the episode ends before."""
        pending = Pending(request, Future())
        with self._changed:
            if self._closed:
                pending.reply.cancel()
            else:
                self._waiting.append(pending)
                self._changed.notify_all()
        return pending.reply

    def post(self, reward: Reward) -> bool:
        """Called by the program: set the episode's reward. Returns False if it was set before."""
        with self._changed:
            first, self.posted = self.posted is None, self.posted or reward
            return first

    def end(self, end: End) -> None:
        """End the program's part."""
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def hear(self) -> Request | End:
        """Called by the environment: wait for the next request, or the end, which leaves open requests unanswered.

        The caller keeps the deadline: an abandoned thread gets an exception here.
        """
        while True:
            with self._changed:
                if self._end is not None:
                    return self._end
                if self._waiting:
                    self._asked = self._waiting.popleft()
                    return self._asked.request
                self._changed.wait(_SLICE_S)

    def reply(self, said: Answer | Refusal) -> None:
        """Called by the environment: reply to its last request."""
        assert self._asked is not None, "a reply is to a request"
        asked, self._asked = self._asked, None
        asked.reply.set_result(said)

    def close(self) -> None:
        """Leave all present and future requests unanswered."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *([self._asked] if self._asked else [])]
            self._waiting.clear()
            self._asked = None
        for pending in left:
            pending.reply.cancel()
