"""A rollout worker that takes up one run after another, on an engine without a model."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import numpy
import pytest
import torch

from rlpost.config.schema import Config
from rlpost.envs import given
from rlpost.errors import RolloutError
from rlpost.rollout import worker
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.env_threads import EnvThread, unended
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.rollout.worker import RolloutActor
from rlpost.types import EpisodeSpec, Trajectory
from rlpost.weights.models import TINY

SPECS = [EpisodeSpec("faces_10", "train", 11 + i, i, 0, 7, i) for i in range(3)]


class CountingEngine(ScriptedEngine):
    resets = 0

    def reset(self) -> None:
        super().reset()
        self.resets += 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingEngine]:
    engine = CountingEngine(lambda conversation, seed: f"seed {seed}", Chat.load(TINY))
    monkeypatch.setattr(worker, "start_engine", lambda cfg, folder: engine)
    before = given.table()
    yield engine
    given.receive(before)


def played(actor: RolloutActor, seed: int) -> list[Trajectory]:
    found = actor._worker.collect(SPECS, Sampling(1.0, 8))
    assert actor.close() == []
    return found


def drawn() -> tuple[float, float, float]:
    """What an environment would draw that ignores its seed."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(1))


def test_the_next_run_plays_as_if_it_were_the_first(
    engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "unended", lambda timeout_s: 0)  # other tests may have left threads
    first, second = RolloutActor(), RolloutActor()
    first.start(Config(seed=5), str(TINY), {"score": len})
    alone = drawn(), played(first, 5)
    second.start(Config(seed=4), str(TINY), {"other": len})
    assert drawn() != alone[0]
    played(second, 4)
    second._worker.version = 3
    second.begin(Config(seed=5), {"score": len})
    assert engine.resets == 1
    assert second._worker.version == 0
    assert given.table() == {"score": len}
    assert (drawn(), played(second, 5)) == alone


def test_an_environment_that_still_works_is_refused(
    engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ENDING_S", 0.1)
    actor, over, hanging = RolloutActor(), threading.Event(), EnvThread()
    actor.start(Config(), str(TINY), {})
    hanging.do(lambda: not over.wait(60))
    with pytest.raises(RolloutError, match="environments of the run before have not ended"):
        actor.begin(Config(), {})
    assert engine.resets == 0
    over.set()


def test_threads_that_end_are_waited_for() -> None:
    others = unended(0.0)  # that other tests have left
    thread, over = EnvThread(), threading.Event()
    thread.do(lambda: not over.wait(60))
    assert unended(0.0) == others + 1
    over.set()
    thread.join(60)
    assert unended(0.0) <= others
