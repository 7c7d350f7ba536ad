"""Host memory: what is measured, when its growth is steady, and that a worker above the limit is replaced."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.cluster.memory import Memory, of_this_process
from rlpost.config.schema import Config
from rlpost.errors import ConfigError
from rlpost.record.memory_growth import SETTLING, WINDOW, Growth, steady_growth
from rlpost.record.metrics import Clock
from rlpost.tasks import memory

noise = st.lists(st.floats(-2.0, 2.0), min_size=WINDOW, max_size=WINDOW)


def test_a_process_is_measured_with_those_that_it_started() -> None:
    alone = of_this_process()
    assert alone.pss is not None
    assert 10 < alone.pss <= alone.rss
    hold = "held = bytearray(200 * 2**20); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        both = of_this_process()
        child.communicate(b"\n")
    assert 180 < both.rss - alone.rss < 300
    assert both.pid == alone.pid


@given(noise, st.floats(1.5, 50.0))
def test_a_leak_is_found_under_noise(noise: list[float], rate: float) -> None:
    found = steady_growth([500.0 + i * rate + noise[i] for i in range(WINDOW)])
    assert found == pytest.approx(rate, abs=0.25)


@given(noise)
def test_noise_is_no_leak(noise: list[float]) -> None:
    assert steady_growth([500.0 + each for each in noise]) is None


@given(noise, st.integers(0, WINDOW), st.floats(0.0, 1000.0))
def test_a_jump_is_no_leak(noise: list[float], at: int, height: float) -> None:
    assert (
        steady_growth([500.0 + each + height * (i >= at) for i, each in enumerate(noise)]) is None
        or height < 12
    )


def test_the_first_iterations_do_not_count_and_a_warning_is_repeated_while_it_goes_on() -> None:
    growth = Growth(pid=1)
    filling = [500.0 + 300.0 * (1 - 0.5**i) for i in range(SETTLING)]
    assert all(growth.see(mib) is None for mib in [*filling, *[800.0] * WINDOW])
    leaking = [growth.see(800.0 + 2.0 * i) for i in range(3 * WINDOW)]
    first = next(i for i, rate in enumerate(leaking) if rate)
    assert first < WINDOW
    assert leaking[first + WINDOW] == leaking[first + 2 * WINDOW] == pytest.approx(2.0)
    assert sum(rate is not None for rate in leaking) == 3


class Pool:
    def __init__(self, *mib: float) -> None:
        self.mib, self.recycled = list(mib), list[int]()

    def memory(self) -> dict[int, Memory]:
        return {i: Memory(pid=len(self.recycled), rss=2 * mib, pss=mib) for i, mib in enumerate(self.mib)}

    def recycle(self, i: int) -> None:
        self.recycled.append(i)
        self.mib[i] = 100.0


def session_of(pool: Pool, recycle_mib: int = 0) -> Any:
    cfg, notes = Config(), list[str]()
    cfg.rollout.recycle_mib = recycle_mib
    learner = SimpleNamespace(memory=lambda: [Memory(pid=9, rss=50.0, pss=None)])
    told = SimpleNamespace(note=notes.append)
    return SimpleNamespace(
        cfg=cfg, pool=pool, learner=learner, clock=Clock(), progress=told, growth={}, notes=notes
    )


def test_every_process_has_its_figures() -> None:
    session = session_of(Pool(300.0, 200.0))
    assert memory.look(session) == {
        "memory/rollout_0/rss": 600.0,
        "memory/rollout_0/pss": 300.0,
        "memory/rollout_1/rss": 400.0,
        "memory/rollout_1/pss": 200.0,
        "memory/learner_0/rss": 50.0,
    }
    assert "seconds/memory" in session.clock.lap()


def test_workers_above_the_limit_are_replaced_and_counted() -> None:
    pool = Pool(300.0, 200.0)
    session = session_of(pool, recycle_mib=250)
    assert memory.look(session)["memory/recycled"] == 1.0
    assert memory.look(session)["memory/recycled"] == 0.0
    assert pool.recycled == [0]
    assert session.notes == ["rollout_0 was replaced at 300 MiB"]


def test_steady_growth_is_noted_for_the_process_that_grows() -> None:
    pool = Pool(300.0, 300.0)
    session = session_of(pool)
    for _ in range(SETTLING + WINDOW):
        pool.mib[1] += 3.0
        memory.look(session)
    (note,) = session.notes
    assert note == (
        "rollout_1 grows steadily, by 3.0 MiB an iteration, and has 402 MiB; rollout.recycle_mib replaces it"
    )


def test_a_new_process_settles_anew() -> None:
    pool = Pool(300.0)
    session = session_of(pool)
    for i in range(2 * (SETTLING + WINDOW)):
        if i % (SETTLING + WINDOW - 1) == 0:
            pool.recycle(0)
        pool.mib[0] += 3.0
        memory.look(session)
    assert session.notes == []


def test_a_limit_that_replaces_every_worker_every_time_is_refused() -> None:
    memory.refuse_small_limit(session_of(Pool(300.0)))
    memory.refuse_small_limit(session_of(Pool(300.0), recycle_mib=301))
    with pytest.raises(ConfigError, match=r"rollout\.recycle_mib"):
        memory.refuse_small_limit(session_of(Pool(100.0, 300.0), recycle_mib=300))
