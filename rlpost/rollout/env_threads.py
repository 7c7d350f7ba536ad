"""Environments' resets and steps in threads of their own, each with a deadline, while the engine decodes.

    submit ──▶ queue ──▶ thread: work() ──▶ finished: the calls that are over, in the order they were submitted
                           └ longer than rollout.env_timeout_s ──▶ over as well, timed out; the thread is given up

Fast environments share one thread and lose nothing: `finished` waits for all that was submitted since it was last
called, so a turn joins the batch in the same place on every run. Slow ones get more threads: as many as there are cores
while they compute, as there are calls while they wait. How long decoding waits for them is bounded by a share of the
time decoded (`Patience`); what is slower goes on beside it.

Python cannot end a thread. One that is given up gets an exception, which ends an endless loop at once and anything
else when it comes back to Python; it takes no further call and, a daemon, does not hold up the end of the process.
Native code that never lets go of the interpreter's lock stops the whole worker, which is rollout.timeout_s's to find.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlpost.errors import RolloutError

MOST_HANGING = (
    64  # threads given up that have not ended; with more, the environment is broken and not an episode
)
SLICE_S = 0.01  # of waiting, after which deadlines are looked at
CORES = len(os.sched_getaffinity(0))

T = TypeVar("T")


class Call:
    """One piece of work; `name` is the submitter's."""

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name, self._work = name, work
        self.result: Any = None
        self.error: BaseException | None = None
        self.timed_out = False
        self.thread: threading.Thread | None = None
        self.began = self.seconds = 0.0
        self._settled = threading.Lock()

    def run(self) -> bool:
        """Do the work in this thread; False if it was given up meanwhile."""
        self.began, self.thread = time.monotonic(), threading.current_thread()
        try:
            self.result = self._work()
        except BaseException as error:  # an environment may raise anything, and may call sys.exit
            self.error = error
        self.seconds = time.monotonic() - self.began
        return self.settle()

    def settle(self) -> bool:
        """True for the first to ask: the thread that has done the work, or whoever gives it up."""
        return self._settled.acquire(blocking=False)

    def overdue(self, timeout_s: float) -> bool:
        return self.thread is not None and time.monotonic() - self.began > timeout_s


class Patience:
    """Seconds for which decoding may yet wait for environments.

    Time in which an environment computes costs nothing: Python computes in one thread at a time, so that decoding
    beside it would gain nothing. Waiting for anything else (a network, another process) uses it up.
    """

    MOST_S = 3.0
    SHARE = 0.05  # of the time decoded, by which it grows back
    MUCH_S = 0.25  # more than a busy machine makes of waking a thread

    def __init__(self) -> None:
        self.seconds = self.MOST_S

    def decoded(self, seconds: float) -> None:
        self.seconds = min(self.MOST_S, self.seconds + self.SHARE * seconds)

    def waited(self, seconds: float, computing: float) -> None:
        self.seconds -= max(0.0, seconds - computing)

    @property
    def much_used(self) -> bool:
        """Whether environments were seen to wait and not to compute."""
        return self.seconds < self.MOST_S - self.MUCH_S


class EnvThreads:
    """Runs calls of the environment `env_name`. To be used from one thread."""

    def __init__(self, env_name: str, timeout_s: float) -> None:
        self._env_name, self._timeout_s = env_name, timeout_s
        self._todo: SimpleQueue[Call | None] = SimpleQueue()
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._open: dict[Call, None] = {}  # submitted and not over, in order
        self._fresh: set[Call] = set()  # of these, submitted since `finished` was last called
        self._threads: list[_Thread] = []
        self._hanging: list[threading.Thread] = []
        self._few = 1  # as many as there are cores once a call was slow
        self._patience, self._left = Patience(), time.monotonic()
        weakref.finalize(self, self._todo.put, None)

    def submit(self, call: Call) -> None:
        self._open[call] = None
        self._fresh.add(call)
        self._todo.put(call)

    def finished(self, decoding: bool) -> list[Call]:
        """The calls that are over. Unless there is something to decode meanwhile: at least one, if any are open.

        Raises RolloutError when so many calls hang that the environment must be taken for broken.
        """
        self._patience.decoded(time.monotonic() - self._left)
        order = {call: i for i, call in enumerate(self._open)}
        over = [*self._ready(), *self._give_up()]
        self._staff()
        while self._open and (self._worth_waiting() or not (decoding or over)):
            over += self._wait()
            self._staff()
        self._fresh.clear()
        self._left = time.monotonic()
        return sorted(over, key=order.__getitem__)

    def _worth_waiting(self) -> bool:
        return bool(self._fresh) and self._patience.seconds > 0

    def _staff(self) -> None:
        """A thread a call where environments were seen to wait; else a few beside those that others hold up."""
        wanted = (
            len(self._open) if self._patience.much_used else len(self._open) - len(self._fresh) + self._few
        )
        while len(self._threads) < min(wanted, len(self._open)):
            self._threads.append(_Thread(self._todo, self._done))

    def _wait(self) -> list[Call]:
        """Wait for one call; returns what is over."""
        began, computed = time.monotonic(), self._computed()
        try:
            done = [self._done.get(timeout=SLICE_S)]
        except Empty:
            done, self._few = [], CORES
        self._patience.waited(time.monotonic() - began, self._computed() - computed)
        return self._returned(done) if done else self._give_up()

    def _ready(self) -> list[Call]:
        """What came back while nobody waited."""
        return self._returned([self._done.get() for _ in range(self._done.qsize())])

    def _returned(self, calls: list[Call]) -> list[Call]:
        for call in calls:
            call.timed_out = call.seconds > self._timeout_s
        return self._closed(calls)

    def _computed(self) -> float:
        return sum(thread.cpu_seconds() for thread in self._threads)

    def _give_up(self) -> list[Call]:
        """End the calls that are overdue."""
        overdue = [call for call in self._open if call.overdue(self._timeout_s) and call.settle()]
        for call in overdue:
            call.timed_out = True
            assert isinstance(call.thread, _Thread)
            self._threads.remove(call.thread)
            call.thread.interrupt()
            self._hanging = [thread for thread in (*self._hanging, call.thread) if thread.is_alive()]
        if len(self._hanging) > MOST_HANGING:
            raise RolloutError(
                f"{len(self._hanging)} calls of the environment {self._env_name} hang,"
                f" each for longer than rollout.env_timeout_s={self._timeout_s:g};"
                " mend the environment, or give it more time if it is only slow"
            )
        return self._closed(overdue)

    def _closed(self, calls: list[Call]) -> list[Call]:
        for call in calls:
            del self._open[call]
            self._fresh.discard(call)
        return calls


class _Thread(threading.Thread):
    """Takes calls until it is given up or gets None, which it passes on. Keeps no reference to `EnvThreads`."""

    def __init__(self, todo: SimpleQueue[Call | None], done: SimpleQueue[Call]) -> None:
        super().__init__(name="environment", daemon=True)
        self._todo, self._done = todo, done
        self.start()
        assert self.ident is not None
        self._clock = time.pthread_getcpuclockid(self.ident)

    def run(self) -> None:
        while (call := self._todo.get()) is not None:
            if not call.run():
                return
            self._done.put(call)
            del call  # its environment must not live until the next one comes
        self._todo.put(None)

    def cpu_seconds(self) -> float:
        return time.clock_gettime(self._clock)

    def interrupt(self) -> None:
        """Raise SystemExit in this thread, as soon as it executes Python: threads end by it without a word."""
        assert self.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))


def within(timeout_s: float, what: str, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread of its own.

    Raises RolloutError, which names `what`, when it takes longer than `timeout_s`; else what the work raises.
    """
    call = Call(what, work)
    thread = threading.Thread(target=call.run, name="environment", daemon=True)
    thread.start()
    thread.join(min(threading.TIMEOUT_MAX, timeout_s))  # it takes no longer one
    if call.settle():
        raise RolloutError(f"{what} gave no answer within rollout.env_timeout_s={timeout_s:g}")
    if call.error is not None:
        raise call.error
    return call.result
