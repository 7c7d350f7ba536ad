"""One rollout worker: `RolloutWorker`, a plain class, and `RolloutActor`, the thin Ray actor around it."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from rlpost.cluster import data_files
from rlpost.cluster.memory import Memory, of_this_process
from rlpost.config.schema import Config, OnSwap
from rlpost.envs import given, registry
from rlpost.errors import RolloutError
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector, Ended
from rlpost.rollout.continuous import ContinuousPlay, Played
from rlpost.rollout.elsewhere import elsewhere, plays_elsewhere
from rlpost.rollout.engine.protocol import Engine, Sampling, SwapReport
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.env_threads import unended
from rlpost.types import Canary, EpisodeSpec, Trajectory
from rlpost.weights import models
from rlpost.weights.adapters import Adapter

T = TypeVar("T")

ENDING_S = 5.0  # in which the threads of closed environments end


class RolloutWorker:
    """An engine, its environments and the version of the live adapter (0: the bare base model).

    With `retention.env` there are two kinds of environments; the specs say which they are of.
    """

    def __init__(self, cfg: Config, engine: Engine, chat: Chat) -> None:
        self._engine, self._max_gap = engine, cfg.rollout.max_canary_gap
        self._drains = cfg.rollout.on_swap is OnSwap.drain
        self._collector = _collector(cfg, engine, chat)
        self._continuous = ContinuousPlay(self._collector)
        self._elsewhere = _collector(elsewhere(cfg), engine, chat) if plays_elsewhere(cfg) else None
        self.version = 0

    def swap(self, adapter: Adapter, canary: Canary) -> SwapReport:
        """Make `adapter` live. Raises SwapError; the previous version is then live.

        With rollout.on_swap=drain the requests of continuous play end first; else they go on under the new weights.
        """
        if self._drains:
            self._continuous.drain()
        report = self._engine.swap(adapter, canary, self._max_gap)
        self.version = adapter.version
        return report

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        return self._of(specs).collect(specs, sampling, self.version)

    def stream(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> Generator[Ended]:
        """See `Collector.stream`."""
        return self._of(specs).stream(specs, sampling, self.version)

    def play(
        self, owed: Sequence[EpisodeSpec], sampling: Sampling, begin: bool, give_back: int = 0
    ) -> Generator[Played | None]:
        """See `ContinuousPlay.play`."""
        return self._continuous.play(owed, sampling, self.version, begin, give_back)

    def close(self) -> list[str]:
        """Close the environments; return what went wrong."""
        return self._collector.close() + ([] if self._elsewhere is None else self._elsewhere.close())

    def _of(self, specs: Sequence[EpisodeSpec]) -> Collector:
        """The collector of the specs' environment, which all specs of a call share."""
        if not any(spec.elsewhere for spec in specs):
            return self._collector
        assert self._elsewhere is not None, "such specs are made with retention.env alone"
        return self._elsewhere


def _collector(cfg: Config, engine: Engine, chat: Chat) -> Collector:
    return Collector(
        engine,
        cfg.env,
        lambda: registry.make(cfg.env, **cfg.env_args),
        chat,
        max_live=cfg.rollout.max_num_seqs,
        env_timeout_s=cfg.rollout.env_timeout_s,
        answer_marker=cfg.rollout.answer_marker,
    )


def engine_settings(cfg: Config, model_folder: Path) -> EngineSettings:
    """All settings on which an engine depends. The run's seed is not among them: every request brings its own."""
    rollout = cfg.rollout
    return EngineSettings(
        model=model_folder,
        dtype=cfg.dtype.value,
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        threads=max(1, round(rollout.cpus)),
        enforce_eager=rollout.enforce_eager,
        base=cfg.lora.base.value,
        tensor_parallel=rollout.tensor_parallel,
        sleep=rollout.sleep,
    )


def start_engine(cfg: Config, model_folder: Path) -> Engine:
    """Start the vLLM engine of the configuration in this process."""
    from rlpost.cluster.precision import TORCH_DTYPES
    from rlpost.rollout.engine.vllm_engine import VllmEngine

    assert cfg.dtype in TORCH_DTYPES, "the session settles the precision; vLLM would choose another"
    return VllmEngine(engine_settings(cfg, model_folder))


class RolloutActor:
    """A worker in its own process. `start` is not part of the constructor, so its errors arrive with their own type.

    start ─▶ a run ─▶ begin: the engine at the bare base again, new environments ─▶ another run ─▶ ...
    """

    _worker: RolloutWorker
    _engine: Engine

    def start(self, cfg: Config, model_folder: str, objects: Mapping[str, Any]) -> None:
        """`model_folder`: where the driver has the model. `objects`: what Python handed to the run (envs/given.py).

        Raises ModelError if this node does not have the model.
        """
        from rlpost.cluster.node_tasks import naming_this_node  # imports Ray, which a dry run does not need

        with naming_this_node():
            self._folder = models.on_this_node(cfg.model, Path(model_folder))
        self._engine = start_engine(cfg, self._folder)
        self._set_up(cfg, objects)

    def begin(self, cfg: Config, objects: Mapping[str, Any]) -> None:
        """Begin another run with the same engine settings. The run before has ended and closed its environments.

        Raises SwapError if the engine cannot prove that it is back at the bare base, RolloutError if an environment of
        the run before still works. The worker must not be used any more then.
        """
        del self._worker
        if left := unended(ENDING_S):
            raise RolloutError(f"{left} environments of the run before have not ended")
        self._engine.reset()
        self._set_up(cfg, objects)

    def _set_up(self, cfg: Config, objects: Mapping[str, Any]) -> None:
        given.receive(objects)
        cfg = data_files.on_this_node(cfg)
        seed_globally(cfg.seed)
        self._worker = RolloutWorker(cfg, self._engine, Chat.load(self._folder, cfg.rollout))

    def swap(self, adapter: Adapter, canary: Canary) -> SwapReport:
        return self._worker.swap(adapter, canary)

    def stream(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> Iterator[Ended]:
        """Must be called with num_returns="streaming". Ends after an engine step if the call was cancelled.

        The first value is empty. It says that the call has begun, and may be cancelled (see `actor_calls.cancel`).
        """
        yield []
        yield from _until_cancelled(self._worker.stream(specs, sampling))

    def play(
        self, owed: Sequence[EpisodeSpec], sampling: Sampling, begin: bool, give_back: int = 0
    ) -> Iterator[Played]:
        """Must be called like `stream`. If the call is cancelled, the episodes go on in the next call."""
        yield from _until_cancelled(self._worker.play(owed, sampling, begin, give_back))

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        self._engine.sleep()

    def wake(self) -> None:
        """See `Engine.wake`."""
        self._engine.wake()

    def memory(self) -> Memory:
        """The host memory of this process and of its engine's ranks."""
        return of_this_process()

    def close(self) -> list[str]:
        return self._worker.close()


def _until_cancelled(stream: Generator[T | None]) -> Iterator[T]:
    """What `stream` yields, without what is empty. It is closed once the current call of the actor is cancelled."""
    from rlpost.cluster.actor_calls import is_cancelled  # imports Ray, which a dry run does not need

    with closing(stream):
        for ended in stream:
            if ended:
                yield ended
            if is_cancelled():
                return


def seed_globally(seed: int) -> None:
    """Seed the global generators, from which a user's environment may draw, whatever this process did before.

    Bundled environments and engines do not draw from them: their seeds come with each episode and request.
    """
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
