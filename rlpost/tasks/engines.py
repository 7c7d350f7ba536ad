"""Ray and the rollout workers of a run. A run opens and closes its own, unless it runs inside `kept`.

alone         Ray and engines start ─▶ the run ─▶ all closed
inside kept   Ray and engines start ─▶ the run ─▶ the next run: the bare base again, proven ─▶ ... ─▶ all closed
                    ▲                                  │ other engines are wanted, or a proof failed
                    └───────────── all closed ◀────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from rlpost.cluster import ray_cluster
from rlpost.cluster.data_files import data_files, packaged
from rlpost.cluster.node_logs import fetched_after_failure
from rlpost.cluster.placement import Plan, placed
from rlpost.cluster.ray_cluster import Cluster
from rlpost.cluster.user_modules import import_roots, own_modules
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Config
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.pool import RolloutPool
from rlpost.rollout.worker import engine_settings
from rlpost.tasks import preflight
from rlpost.tasks.portable import portable
from rlpost.weights import models
from rlpost.weights.adapters import WEIGHTS_FILE

# Bytes of weights for which every object store has room (see rlpost.cluster.object_store).
_SMALL = 32 * 2**20


@dataclass(frozen=True)
class Setup:
    """What Ray and the rollout workers are started with. Equal setups may serve one run after another."""

    engine: EngineSettings
    workers: int
    cpus: float  # of a rank
    gpus: float
    import_roots: tuple[Path, ...]  # folders of the user's modules
    weights: int = field(compare=False)  # bytes for which the object store has room

    @classmethod
    def of(cls, cfg: Config, model_folder: Path) -> Setup:
        rollout = cfg.rollout
        return cls(
            engine_settings(cfg, model_folder),
            rollout.workers,
            rollout.cpus,
            rollout.gpus,
            tuple(import_roots(own_modules(cfg))),
            whole_weights(cfg, model_folder),
        )

    def serves(self, wanted: Setup) -> bool:
        return self == wanted and wanted.weights <= max(self.weights, _SMALL)


class Keeper:
    """Keeps Ray and the rollout workers open between runs, one set at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: tuple[Setup, Plan, Cluster, RolloutPool] | None = None

    def lend(
        self, cfg: Config, model_folder: Path, plan: Plan, console: Console
    ) -> tuple[Cluster, RolloutPool]:
        """Ray and workers for a run: the open ones if they serve it, else new ones.

        Raises ClusterError if Ray does not start, or has fewer CPUs or GPUs than the run needs.
        """
        wanted = Setup.of(cfg, model_folder)
        if self._open is not None:
            ray_cluster.check_resources(plan.needs, cfg.ray.address)
        kept = self._kept(cfg, wanted, plan, console)
        if kept is not None:
            return kept
        self.close()
        cluster, pool = self._stack.enter_context(_opened(cfg, model_folder, plan, console))
        self._open = wanted, plan, cluster, pool
        return cluster, pool

    def _kept(
        self, cfg: Config, wanted: Setup, plan: Plan, console: Console
    ) -> tuple[Cluster, RolloutPool] | None:
        """The open Ray and workers, ready for the run; None if there are none, or the run needs new ones."""
        if self._open is None:
            return None
        setup, reserved, cluster, pool = self._open
        if not setup.serves(wanted):
            console.print("engines: started anew, since this run needs others")
            return None
        if not reserved.serves(plan):
            console.print("engines: started anew, since the learner of this run needs other resources")
            return None
        try:
            pool.begin(cfg)
        except Exception as error:  # whatever it was, new engines know nothing of it
            console.print(f"engines: started anew, since the earlier ones failed: {error}", soft_wrap=True)
            return None
        console.print("engines: those of the run before, proven to be back at the bare base")
        return cluster, pool

    def close(self) -> None:
        self._open = None
        self._stack.close()


_keeper: ContextVar[Keeper | None] = ContextVar("_keeper", default=None)


@contextmanager
def kept() -> Iterator[None]:
    """Runs on this machine inside this `with` leave Ray and their rollout workers open for the next one.

    After a run that failed, the caller must leave the `with`: nobody knows what the workers are doing.
    """
    keeper = Keeper()
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)
        keeper.close()


@contextmanager
def engines(
    cfg: Config, model_folder: Path, plan: Plan, logs: Path, console: Console
) -> Iterator[RolloutPool]:
    """The rollout workers of a run, placed as `plan` says. They may still be starting: see `wait_ready`.

    If the body fails, the logs of Ray's workers are copied to `logs`. Raises ClusterError, also if a node of a joined
    cluster lacks what the run needs.
    """
    keeper = _keeper.get()
    with ExitStack() as stack:
        if keeper is None or cfg.ray.address is not None:
            cluster, pool = stack.enter_context(_opened(cfg, model_folder, plan, console))
        else:
            cluster, pool = keeper.lend(cfg, model_folder, plan, console)
        stack.enter_context(cluster.keeping_logs(logs))
        if cfg.ray.address is not None:
            stack.enter_context(fetched_after_failure(logs))
        yield pool


@contextmanager
def _opened(
    cfg: Config, model_folder: Path, plan: Plan, console: Console
) -> Iterator[tuple[Cluster, RolloutPool]]:
    modules, weights = own_modules(cfg), whole_weights(cfg, model_folder)
    joined = cfg.ray.address is not None
    with ExitStack() as stack:
        with packaged(data_files(cfg) if joined else []) as data:
            cluster = stack.enter_context(
                ray_cluster.connect(cfg.ray, plan.needs, modules=[*modules, *data], weights=weights)
            )
        if joined and not cfg.ray.autoscaling:  # before it waits for room
            preflight.check(cfg, model_folder)
        placement = stack.enter_context(
            placed(plan, cfg.ray, lambda line: console.print(line, markup=False, soft_wrap=True))
        )
        if joined and cfg.ray.autoscaling:  # its nodes may not have been there before
            preflight.check(cfg, model_folder)
        pool = RolloutPool(portable(cfg, model_folder), model_folder, placement)
        yield cluster, stack.enter_context(closing(pool))


def whole_weights(cfg: Config, model_folder: Path) -> int:
    """The bytes of the weights that a swap sends, at most: whole float32 parameters; an adapter's file."""
    adapter = Path(cfg.adapter) / WEIGHTS_FILE if cfg.adapter is not None else None
    trained = 4 * models.parameters(model_folder) if TABLE[cfg.lora.kind].whole else 0
    return max(trained, adapter.stat().st_size if adapter is not None else 0)
