"""Runs resets and steps of environments during decoding: one thread per environment, one deadline per call.

    submit ──▶ gate ──▶ the environment's thread: work() ──▶ finished: the calls that are over, in order of submission
                          └ longer than rollout.env_timeout_s ──▶ over as well, timed out; the thread is abandoned

An environment is created, reset, stepped and closed in one thread, so it may keep objects that belong to a thread: an
sqlite3 connection, an event loop. It is not Python's main thread, which signals need.

Fast environments run one after another without loss: `finished` waits for all calls submitted since it was last called,
so a turn joins the batch in the same place on every run. Slow ones pass the gate together: as many as there are cores
while they compute, all while they wait. Decoding waits for them for a bounded share of the time decoded (`Patience`);
slower calls continue beside it.

Python cannot end a thread. An abandoned thread gets an exception, which ends an endless Python loop at once, and other
code when it returns to Python. It takes no further calls and, as a daemon, does not delay the end of the process.
Native code that never releases the interpreter's lock stops the whole worker; rollout.timeout_s detects that.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlpost.envs import own, registry
from rlpost.errors import RolloutError

# Abandoned threads that have not ended. With more, the environment counts as broken, not the episode.
MOST_HANGING = 64
SLICE_S = 0.01  # seconds of waiting between two checks of the deadlines
CORES = len(os.sched_getaffinity(0))

T = TypeVar("T")


class EnvThread(threading.Thread):
    """The thread of one environment. It runs all work on that environment, one job after another."""

    def __init__(self) -> None:
        super().__init__(name="environment", daemon=True)
        self._jobs: SimpleQueue[Callable[[], bool] | None] = SimpleQueue()
        self.start()
        assert self.ident is not None
        self._clock = time.pthread_getcpuclockid(self.ident)

    def run(self) -> None:
        with suppress(SystemExit):  # raised by `interrupt`
            while (job := self._jobs.get()) is not None:
                if not job():
                    return
                del job  # its environment must not live until the next job comes

    def do(self, job: Callable[[], bool]) -> None:
        """Run `job` after the current ones. The thread ends if the job returns False."""
        self._jobs.put(job)

    def end(self) -> None:
        """End the thread after its current jobs."""
        self._jobs.put(None)

    def cpu_seconds(self) -> float:
        return time.clock_gettime(self._clock)

    def interrupt(self) -> None:
        """Raise SystemExit in this thread as soon as it executes Python; a thread ends silently on it."""
        assert self.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))

    def within(
        self, timeout_s: float, what: str, work: Callable[[], T], setting: str = "rollout.env_timeout_s"
    ) -> T:
        """Run `work` in this thread while the caller waits, and return its result.

        Raises RolloutError if it takes longer than `timeout_s`, naming `what` and the `setting` of the deadline (the
        thread is then abandoned), and if it calls sys.exit, which must not end the program. Other errors of the work
        are raised as is.
        """
        call, over = Call(what, work, self), threading.Event()

        def job() -> bool:
            kept = call.run()
            over.set()
            return kept

        self.do(job)
        over.wait(min(threading.TIMEOUT_MAX, timeout_s))  # wait accepts no longer timeout
        if call.settle():
            self.interrupt()
            raise RolloutError(f"{what} gave no answer within {setting}={timeout_s:g}")
        if isinstance(call.error, SystemExit):
            raise RolloutError(f"{what} called sys.exit({call.error.code!r})") from call.error
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result


class Call:
    """One piece of work in an environment's thread; `name` is the submitter's. Without a thread, it gets a new one."""

    def __init__(self, name: str, work: Callable[[], Any], thread: EnvThread | None = None) -> None:
        self.name, self._work = name, work
        self.thread = EnvThread() if thread is None else thread
        self.result: Any = None
        self.error: BaseException | None = None
        self.timed_out = False
        self.began: float | None = None
        self.seconds = 0.0
        self._settled = threading.Lock()

    def run(self) -> bool:
        """Do the work in the current thread; return False if it was abandoned meanwhile."""
        began = self.began = time.monotonic()
        try:
            self.result = self._work()
        # An environment may raise anything, and may call sys.exit.
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - began
        return self.settle()

    def settle(self) -> bool:
        """True for the first caller only: the thread that has done the work, or the one that abandons it."""
        return self._settled.acquire(blocking=False)

    def overdue(self, timeout_s: float) -> bool:
        return self.began is not None and time.monotonic() - self.began > timeout_s


class _Gate:
    """Lets a limited number of calls into their threads at once, in the order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._inside, self._places = 0, 1

    def enter(self, begin: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(begin)
            self._admit()

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._admit()

    def widen(self, places: int) -> None:
        with self._lock:
            self._places = max(self._places, places)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._inside < self._places:
            self._inside += 1
            self._waiting.popleft()()


class Patience:
    """The seconds for which decoding may still wait for environments.

    Time in which an environment computes is free: Python computes in one thread at a time, so decoding beside it would
    gain nothing. Waiting for anything else (a network, another process) uses it up.
    """

    MOST_S = 3.0
    SHARE = 0.05  # share of the time decoded that is added
    MUCH_S = 0.25  # more than a busy machine needs to wake a thread

    def __init__(self) -> None:
        self.seconds = self.MOST_S

    def decoded(self, seconds: float) -> None:
        self.seconds = min(self.MOST_S, self.seconds + self.SHARE * seconds)

    def waited(self, seconds: float, computing: float) -> None:
        self.seconds -= max(0.0, seconds - computing)

    @property
    def much_used(self) -> bool:
        """Whether environments have waited without computing."""
        return self.seconds < self.MOST_S - self.MUCH_S


class EnvThreads:
    """Runs calls of the environment `env_name`, each in its environment's thread. All methods belong to one thread."""

    def __init__(self, env_name: str, timeout_s: float) -> None:
        self._env_name, self._timeout_s = env_name, timeout_s
        self._gate = _Gate()
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._open: dict[Call, None] = {}  # submitted and not over, in order
        self._fresh: set[Call] = set()  # those of them submitted since `finished` was last called
        self._threads: set[EnvThread] = set()
        self._hanging: list[threading.Thread] = []
        self._few = 1  # the number of cores, once a call was slow
        self._patience, self._left = Patience(), time.monotonic()
        weakref.finalize(self, _end, self._threads)

    def submit(self, call: Call) -> None:
        self._open[call] = None
        self._fresh.add(call)
        self._threads.add(call.thread)
        job = partial(_played, call, self._gate, self._done)
        self._gate.enter(partial(call.thread.do, job))

    def retire(self, thread: EnvThread, close: Callable[[], None] | None = None) -> None:
        """Close the environment in its thread and end the thread. Nobody waits for it, and its errors are ignored."""
        self._threads.discard(thread)
        if close is not None:
            thread.do(Call("close", close, thread).run)
        thread.end()

    def told(self, call: Call, what: str) -> str:
        """Why a call of the environment's method `what` failed."""
        if call.timed_out:
            return f"{what} took longer than rollout.env_timeout_s={self._timeout_s:g}"
        assert call.error is not None, "it failed"
        return own.told(call.error)

    def close(self, idle: Sequence[tuple[Any, EnvThread]]) -> list[str]:
        """Close environments, each in its thread, which ends with it. Returns what went wrong."""
        for i, (env, thread) in enumerate(idle):
            self.submit(Call(str(i), env.close, thread))
        wrong = []
        while over := self.finished(decoding=False):
            wrong += [self.told(call, "close") for call in over if call.timed_out or call.error is not None]
        for _, thread in idle:
            self.retire(thread)
        return wrong

    def finished(self, decoding: bool) -> list[Call]:
        """The calls that are over. It returns at least one, if any are open, unless `decoding` has other work.

        Raises RolloutError if so many calls hang that the environment counts as broken.
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
        """Set the gate's width: every open call if environments waited; else a few beside the older calls."""
        wanted = (
            len(self._open) if self._patience.much_used else len(self._open) - len(self._fresh) + self._few
        )
        self._gate.widen(min(wanted, len(self._open)))

    def _wait(self) -> list[Call]:
        """Wait for one call; return the calls that are over."""
        began, threads = time.monotonic(), [call.thread for call in self._open]
        computed = _computed(threads)
        try:
            done = [self._done.get(timeout=SLICE_S)]
        except Empty:
            done, self._few = [], CORES
        self._patience.waited(time.monotonic() - began, _computed(threads) - computed)
        return self._returned(done) if done else self._give_up()

    def _ready(self) -> list[Call]:
        """The calls that ended while nobody waited."""
        return self._returned([self._done.get() for _ in range(self._done.qsize())])

    def _returned(self, calls: list[Call]) -> list[Call]:
        for call in calls:
            call.timed_out = call.seconds > self._timeout_s
        return self._closed(calls)

    def _give_up(self) -> list[Call]:
        """Abandon the calls that are overdue."""
        overdue = [call for call in self._open if call.overdue(self._timeout_s) and call.settle()]
        for call in overdue:
            call.timed_out = True
            self._threads.discard(call.thread)
            self._gate.leave()
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


def _played(call: Call, gate: _Gate, done: SimpleQueue[Call]) -> bool:
    """Run a submitted call in its thread. The gate no longer counts an abandoned call, and its thread ends."""
    if not call.run():
        return False
    gate.leave()
    done.put(call)
    return True


def _computed(threads: Iterable[EnvThread]) -> float:
    return sum(thread.cpu_seconds() for thread in threads)


def _end(threads: set[EnvThread]) -> None:
    for thread in threads:
        thread.end()


def unended(timeout_s: float) -> int:
    """The number of environments' threads in this process that have not ended. Waits for them, `timeout_s` in all."""
    deadline = time.monotonic() + timeout_s
    threads = [thread for thread in threading.enumerate() if isinstance(thread, EnvThread)]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sum(thread.is_alive() for thread in threads)


@contextmanager
def living(
    name: str, args: Mapping[str, Any], timeout_s: float, purpose: str
) -> Iterator[tuple[Any, Callable[[Callable[[], Any]], Any]]]:
    """An environment in its own thread, with `ask(work)`: runs `work` there and returns its result (EnvThread.within).

    It is closed if the block ends without an error. Errors name the `purpose` of the call.
    """
    thread = EnvThread()
    ask = partial(thread.within, timeout_s, f"the environment {name} ({purpose})")
    try:
        env = ask(partial(registry.make, name, **args))
        yield env, ask
        ask(env.close)
    finally:
        thread.end()


def within(timeout_s: float, what: str, work: Callable[[], T], setting: str = "rollout.env_timeout_s") -> T:
    """Run `work` in a new thread and return its result; see EnvThread.within."""
    thread = EnvThread()
    try:
        return thread.within(timeout_s, what, work, setting)
    finally:
        thread.end()
