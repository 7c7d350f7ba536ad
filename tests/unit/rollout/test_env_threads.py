"""Calls in threads: all come back, in order, each by its deadline; what hangs is left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlpost.errors import RolloutError
from rlpost.rollout import env_threads
from rlpost.rollout.env_threads import Call, EnvThread, EnvThreads, Patience, within


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hangs waits for this, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def run(threads: EnvThreads, *works: Callable[[], Any], decoding: bool = False) -> list[Call]:
    for i, work in enumerate(works):
        threads.submit(Call(str(i), work))
    return threads.finished(decoding)


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


def test_fast_calls_take_turns_and_come_back_in_order() -> None:
    threads, inside, together = EnvThreads("e", 30.0), list[int](), list[int]()

    def work() -> int:
        inside.append(1)
        together.append(len(inside))
        inside.pop()
        return threading.get_ident()

    over = run(threads, *[work] * 50, decoding=True)
    assert names(over) == [str(i) for i in range(50)]
    assert set(together) == {1}
    assert threading.get_ident() not in {call.result for call in over}
    assert threads.finished(False) == []


def test_what_is_asked_of_one_environment_is_asked_in_one_thread() -> None:
    """Whatever the others do meanwhile."""
    threads = EnvThreads("e", 30.0)
    homes = [EnvThread() for _ in range(5)]
    seen: dict[EnvThread, set[int]] = {home: set() for home in homes}
    for turn in range(4):
        for i, home in enumerate(homes):
            threads.submit(Call(str(i), lambda: time.sleep(0.03) or threading.get_ident(), home))
        over = []
        while len(over) < len(homes):
            over += threads.finished(decoding=turn % 2 == 0)
        for call in over:
            seen[call.thread].add(call.result)
    assert [len(idents) for idents in seen.values()] == [1] * 5
    assert len(set.union(*seen.values())) == 5


def test_a_retired_thread_closes_its_environment_and_ends(release: threading.Event) -> None:
    threads, closed = EnvThreads("e", 30.0), list[int]()
    (call,) = run(threads, threading.get_ident)
    threads.retire(call.thread, lambda: closed.append(threading.get_ident()))
    call.thread.join(20)
    assert not call.thread.is_alive()
    assert closed == [call.result]
    (other,) = run(threads, threading.get_ident)
    threads.retire(other.thread, lambda: release.wait(60) and None)  # nobody waits
    assert names(run(threads, lambda: "on")) == ["0"]


def test_one_thread_asked_by_one_who_waits(release: threading.Event) -> None:
    home = EnvThread()
    assert (
        home.within(30.0, "it", threading.get_ident)
        == home.within(30.0, "it", threading.get_ident)
        == home.ident
    )
    with pytest.raises(ZeroDivisionError):
        home.within(30.0, "it", lambda: 1 // 0)
    with pytest.raises(RolloutError, match=r"it gave no answer within rollout\.env_timeout_s=0\.1"):
        home.within(0.1, "it", lambda: release.wait(60))
    release.set()
    home.join(20)
    assert not home.is_alive()


def test_the_order_is_that_of_submission_whichever_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "MUCH_S", 0.0)  # a thread for each call
    pauses = (0.08, 0.04, 0.0)
    over = run(EnvThreads("e", 30.0), *[lambda s=s: time.sleep(s) or s for s in pauses], decoding=True)
    assert [call.result for call in over] == list(pauses)


def test_what_raises_or_exits_is_over_and_the_thread_goes_on() -> None:
    threads = EnvThreads("e", 30.0)
    over = run(threads, lambda: 1 // 0, lambda: sys.exit("bye"), lambda: "fine")
    assert [type(call.error).__name__ for call in over] == ["ZeroDivisionError", "SystemExit", "NoneType"]
    assert over[2].result == "fine"


def test_decoding_goes_on_beside_a_slow_call(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    """The slow one is not waited for beyond the patience there is, and keeps nobody from a thread."""
    monkeypatch.setattr(Patience, "MOST_S", 0.1)
    monkeypatch.setattr(Patience, "MUCH_S", 0.05)
    threads = EnvThreads("e", 30.0)
    assert names(run(threads, lambda: release.wait(20), lambda: "fast", decoding=True)) == ["1"]
    began = time.monotonic()
    assert threads.finished(True) == []
    assert time.monotonic() - began < 10
    release.set()
    assert names(threads.finished(False)) == ["0"]


def test_a_hung_call_is_over_by_its_deadline(release: threading.Event) -> None:
    threads = EnvThreads("e", 0.1)
    over = run(threads, lambda: release.wait(60), lambda: "fast")
    assert names(over) == ["0", "1"]
    assert [call.timed_out for call in over] == [True, False]
    assert over[1].result == "fast"
    (again,) = run(threads, lambda: "and on")
    assert again.result == "and on"


def test_an_answer_after_the_deadline_is_none() -> None:
    """However late anyone looks."""
    threads = EnvThreads("e", 0.05)
    threads.submit(Call("late", lambda: time.sleep(0.1)))
    threads._staff()
    time.sleep(0.3)
    (call,) = threads.finished(True)
    assert call.timed_out


def test_an_endless_loop_is_ended() -> None:
    threads = EnvThreads("e", 0.1)

    def loop() -> None:
        while True:
            pass

    (call,) = run(threads, loop)
    assert call.timed_out
    call.thread.join(20)
    assert not call.thread.is_alive()


def test_too_many_hanging_calls_are_refused(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    monkeypatch.setattr(env_threads, "MOST_HANGING", 2)
    threads = EnvThreads("doors", 0.1)
    assert all(call.timed_out for call in run(threads, *[lambda: release.wait(60)] * 2))
    with pytest.raises(RolloutError, match=r"3 calls of the environment doors hang.*env_timeout_s=0\.1"):
        run(threads, lambda: release.wait(60))


def test_threads_that_came_back_hang_no_more(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    monkeypatch.setattr(env_threads, "MOST_HANGING", 1)
    threads = EnvThreads("doors", 0.1)
    for _ in range(3):
        gate = threading.Event()
        (call,) = run(threads, lambda gate=gate: gate.wait(60))
        gate.set()
        assert call.timed_out
        call.thread.join(20)


def test_patience_is_for_computing_and_a_share_of_decoding() -> None:
    patience = Patience()
    patience.waited(9.0, computing=9.5)
    assert patience.seconds == Patience.MOST_S
    assert not patience.much_used
    patience.waited(2.0, computing=0.5)
    assert patience.seconds == Patience.MOST_S - 1.5
    assert patience.much_used
    patience.decoded(10.0)
    assert patience.seconds == Patience.MOST_S - 1.0
    patience.decoded(1e6)
    assert patience.seconds == Patience.MOST_S


def test_the_threads_end_with_their_owner() -> None:
    threads = EnvThreads("e", 30.0)
    over = run(threads, *[lambda: time.sleep(0.1)] * 6)
    workers = {call.thread for call in over}
    assert len(workers) > 1
    del threads
    gc.collect()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


def test_a_hung_thread_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import time; from rlpost.rollout.env_threads import *\n"
        "t = EnvThreads('e', 0.1); t.submit(Call('x', lambda: time.sleep(600)))\n"
        "print([call.timed_out for call in t.finished(False)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[True]\n", "")


def test_one_call_within_a_deadline(release: threading.Event) -> None:
    assert within(30.0, "the expert", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(30.0, "the expert", lambda: 1 // 0)
    with pytest.raises(RolloutError, match=r"the expert gave no answer within rollout\.env_timeout_s=0\.1"):
        within(0.1, "the expert", lambda: release.wait(60))
