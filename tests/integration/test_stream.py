"""Real Ray, a scripted engine: groups come as they finish, a death changes nothing, an early end stops the workers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlpost.cluster import ray_cluster
from rlpost.config.schema import Config, RayConfig
from rlpost.errors import ClusterError
from rlpost.rollout import pool as pool_module
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.rollout.specs import group_specs, training_specs
from rlpost.rollout.worker import RolloutActor, RolloutWorker
from rlpost.types import EpisodeSpec, Trajectory
from rlpost.weights.models import TINY

pytestmark = pytest.mark.integration

SAMPLING = Sampling(1.0, 64)
STEP_S = 0.05


class BatchEngine(ScriptedEngine):
    """Its answers tell what else was in the batch, as rounding does. Dies in its eighth step beside the file `mark`."""

    def __init__(self, chat: Chat, mark: Path) -> None:
        super().__init__(self._answer, chat)
        self._mark, self._steps, self._batch = mark, 0, ""

    def step(self) -> list[tuple[str, Completion]]:
        time.sleep(STEP_S)
        self._steps += self._mark.exists()
        if self._steps == 8:
            self._mark.unlink()
            os._exit(1)
        self._batch = hashlib.sha256(repr(sorted(seed for *_, seed in self._queue)).encode()).hexdigest()[:8]
        return super().step()

    def _answer(self, text: str, seed: int) -> str:
        return f"{self._batch} {seed % 1000}"


class BatchActor(RolloutActor):
    """A rollout worker's actor around such an engine; the configuration's name is the path of the mark."""

    def start(self, cfg: Config, model_folder: str, given: dict[str, Any]) -> None:
        chat = Chat.load(TINY)
        self._worker = RolloutWorker(cfg, BatchEngine(chat, Path(cfg.name)), chat)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutPool]:
    """Two workers; an iteration has 20 episodes in 5 groups, of which the workers share one."""
    cfg = Config(name=str(tmp_path_factory.mktemp("marks") / "die"), env_args={"verify_iter": 2})
    cfg.rollout.workers, cfg.rollout.cpus = 2, 0.25
    cfg.rollout.episodes, cfg.rollout.group_size, cfg.rollout.max_num_seqs = 20, 4, 3
    with (
        pytest.MonkeyPatch.context() as patch,
        ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1, gpus=0)),
    ):
        patch.setattr(pool_module, "RolloutActor", BatchActor)
        pool = RolloutPool(cfg, TINY)
        pool.wait_ready()
        yield pool
        pool.close()


def many(pool: RolloutPool) -> list[EpisodeSpec]:
    """Episodes that take a worker about a minute."""
    return group_specs(pool.cfg, 1, range(900))


def by_number(groups: list[list[Trajectory]]) -> list[list[Trajectory]]:
    return sorted(groups, key=lambda group: group[0].group)


def test_a_death_in_mid_stream_changes_no_episode_and_nothing_comes_twice(pool: RolloutPool) -> None:
    specs = training_specs(pool.cfg, 0)
    undisturbed, arrivals = list[list[Trajectory]](), list[float]()
    for group in pool.stream(specs, SAMPLING):
        undisturbed.append(group)
        arrivals.append(time.monotonic())
    assert arrivals[-1] - arrivals[0] > 2 * STEP_S, "the groups came together"
    Path(pool.cfg.name).touch()
    disturbed = list(pool.stream(specs, SAMPLING))
    assert pool.restarts == 1
    assert by_number(disturbed) == by_number(undisturbed)
    assert [t for group in by_number(disturbed) for t in group] == pool.collect(specs, SAMPLING)
    assert len({turn.answer for group in disturbed for t in group for turn in t.turns}) > 20


def test_a_recycled_worker_changes_no_episode(pool: RolloutPool) -> None:
    specs = training_specs(pool.cfg, 0)
    undisturbed, before, restarts = pool.collect(specs, SAMPLING), pool.memory(), pool.restarts
    pool.recycle(0)
    after = pool.memory()
    assert (after[0].pid != before[0].pid, after[1].pid == before[1].pid) == (True, True)
    assert all(50 < memory.rss < 5000 for memory in after.values())
    assert pool.collect(specs, SAMPLING) == undisturbed
    assert pool.restarts == restarts


def test_a_stream_that_is_closed_stops_its_workers_who_then_play_on(pool: RolloutPool) -> None:
    few = training_specs(pool.cfg, 2)
    before = pool.collect(few, SAMPLING)
    with closing(pool.stream(many(pool), SAMPLING)) as stream:
        next(stream)
    began = time.monotonic()
    assert pool.collect(few, SAMPLING) == before
    assert time.monotonic() - began < 30, "the closed stream went on"


def test_a_deadline_in_mid_stream_names_who_is_late_and_stops_all(
    pool: RolloutPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool.cfg.rollout, "timeout_s", 1.0)
    with pytest.raises(
        ClusterError, match=r"No answer within 1 s from: rollout worker 0, rollout worker 1\."
    ):
        pool.collect(many(pool), SAMPLING)
    monkeypatch.setattr(pool.cfg.rollout, "timeout_s", 60.0)
    assert len(pool.collect(training_specs(pool.cfg, 3), SAMPLING)) == 20


def test_another_worker_plays_the_share_of_one_that_is_not_replaced_and_changes_no_episode(
    pool: RolloutPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = training_specs(pool.cfg, 4)
    undisturbed = pool.collect(specs, SAMPLING)
    monkeypatch.setattr(pool.cfg.rollout, "restarts", pool.restarts)
    monkeypatch.setattr(pool.cfg.rollout, "min_workers", 1)
    Path(pool.cfg.name).touch()
    assert pool.collect(specs, SAMPLING) == undisturbed
    assert pool.workers == 1
