"""Calls a service that may wait for a network in a separate thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from rlpost.record.trackers.backend import DEADLINE_S, Backend


class Background:
    """A backend that is opened and called in one thread, in order, so a run waits for it only at its end.

    An error in the thread is raised by the next call, and no further calls are made.
    """

    def __init__(
        self, name: str, open_backend: Callable[[], Backend], deadline_s: float = DEADLINE_S
    ) -> None:
        self._name, self._open, self._deadline_s = name, open_backend, deadline_s
        self._waiting: SimpleQueue[tuple[Mapping[str, float], str] | None] = SimpleQueue()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        self._raise_failure()
        self._waiting.put((dict(metrics), over))

    def finish(self) -> None:
        """Send what is left and end. Raises TimeoutError after the deadline; the thread then ends with the process."""
        self._waiting.put(None)
        self._thread.join(self._deadline_s)
        self._raise_failure()
        if self._thread.is_alive():
            raise TimeoutError(f"{self._name} did not take everything within {self._deadline_s:g} s")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            backend = self._open()
            while (task := self._waiting.get()) is not None:
                backend.log(*task)
            backend.finish()
        except Exception as error:  # a foreign service may raise anything; the next call raises it
            self._failure = error
