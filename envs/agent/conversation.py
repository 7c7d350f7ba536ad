"""Between the threads of one episode: the program's requests come in, answers go out, its end is told."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from rlpost.envs.asking import Answer, Refusal, Request

_SLICE_S = 0.05  # of waiting, after which a thread that was given up notices


@dataclass(frozen=True)
class Reward:
    """What the program posted. `success` is none where it did not say."""

    reward: float
    success: bool | None = None


@dataclass(frozen=True)
class End:
    """How the program ended: what it returned, or the error it failed with."""

    returned: object = None
    error: str | None = None


@dataclass(frozen=True)
class Pending:
    """A request and the place for its answer."""

    request: Request
    reply: Future[Answer | Refusal]


class Conversation:
    """One episode's requests, in the order in which they came. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Pending] = deque()
        self._asked: Pending | None = None
        self._end: End | None = None
        self._closed = False
        self.posted: Reward | None = None

    def ask(self, request: Request) -> Future[Answer | Refusal]:
        """The program's: a place where the answer will be. It is cancelled where the episode ends before."""
        pending = Pending(request, Future())
        with self._changed:
            if self._closed:
                pending.reply.cancel()
            else:
                self._waiting.append(pending)
                self._changed.notify_all()
        return pending.reply

    def post(self, reward: Reward) -> bool:
        """The program's: what its episode earned. False where it has said so before."""
        with self._changed:
            first, self.posted = self.posted is None, self.posted or reward
            return first

    def end(self, end: End) -> None:
        """The program has ended."""
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def hear(self) -> Request | End:
        """The environment's: wait for the next request, or the program's end, which leaves open requests unanswered.

        The caller keeps the deadline: a thread that was given up gets an exception here.
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
        """The environment's: to the request that it heard last."""
        assert self._asked is not None, "a reply is to a request"
        asked, self._asked = self._asked, None
        asked.reply.set_result(said)

    def close(self) -> None:
        """Whatever is asked or was asked is not answered."""
        with self._changed:
            self._closed = True
            left = [*self._waiting, *([self._asked] if self._asked else [])]
            self._waiting.clear()
            self._asked = None
        for pending in left:
            pending.reply.cancel()
