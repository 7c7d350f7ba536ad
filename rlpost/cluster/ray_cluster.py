"""The only file that starts or joins Ray, for the duration of a `with` block.

A private Ray keeps its files in a temporary folder and its processes in the driver's process tree. Both are removed
when the block ends, for whatever reason. A joined cluster is only disconnected.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # not in its stub

from rlpost.cluster import joining
from rlpost.cluster.addresses import named_by_environment
from rlpost.cluster.object_store import OBJECT_STORE_BYTES, VERSIONS_AT_ONCE
from rlpost.cluster.ray_folder import RayFolder
from rlpost.cluster.shortage import refuse_shortage
from rlpost.cluster.user_modules import import_roots
from rlpost.config.schema import Config, RayConfig
from rlpost.errors import ClusterError

_PACKAGE = Path(__file__).resolve().parents[1]  # rlpost's own folder, which is copied to joined workers

SHUTDOWN_TIMEOUT_S = 15.0

NICENESS = "RAY_worker_niceness"
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    NICENESS: "0",  # Ray's default of 15 starves actors on a busy machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone in workers without GPUs
}


@dataclass(frozen=True)
class Needs:
    """The resources that a run needs from the whole cluster."""

    cpus: float
    gpus: float
    processes: int = field(default=0, compare=False)  # that share them; 0: not known

    def hold(self, claim: Needs) -> bool:
        """Whether a claim fits in these resources. Ray counts in ten thousandths."""
        return self.cpus > claim.cpus - 1e-5 and self.gpus > claim.gpus - 1e-5

    def less(self, claim: Needs) -> Needs:
        """What is left of these resources beside a claim."""
        return Needs(self.cpus - claim.cpus, self.gpus - claim.gpus)

    @classmethod
    def of(cls, config: Config) -> Needs:
        engines, learner = cls.of_engines(config), config.learner
        return cls(
            cpus=engines.cpus + learner.workers * learner.cpus,
            gpus=engines.gpus + learner.workers * learner.gpus,
            processes=engines.processes + learner.workers,
        )

    @classmethod
    def of_engines(cls, config: Config) -> Needs:
        rollout = config.rollout
        processes = rollout.workers * rollout.tensor_parallel
        return cls(processes * rollout.cpus, processes * rollout.gpus, processes)


@dataclass(frozen=True)
class Cluster:
    """A connected Ray."""

    folder: Path | None  # of a private Ray; None for a joined cluster

    @contextlib.contextmanager
    def keeping_logs(self, target: Path) -> Iterator[None]:
        """If the body fails, copy the logs of a private Ray's workers to `target`."""
        try:
            yield
        except Exception:
            if self.folder is not None:
                _copy_logs(self.folder, target)
            raise


@contextlib.contextmanager
def connect(
    config: RayConfig, needs: Needs, modules: Sequence[Path] = (), weights: int = 0
) -> Iterator[Cluster]:
    """Run the body with Ray connected.

    `weights` are the bytes of one version of the weights that a swap sends, if these are many: a private Ray's object
    store then has room for them. Workers can import `modules`, the user's files and package folders
    (rlpost/cluster/user_modules.py).

    Raises ClusterError if Ray cannot be started or joined, or has fewer CPUs or GPUs than the run needs. A cluster with
    ray.autoscaling may have none yet: rlpost/cluster/placement.py waits for them.
    """
    if ray.is_initialized():
        raise ClusterError(
            "Ray is already connected in this process; leave the first connect() before a second."
        )
    os.environ.update(RAY_ENVIRONMENT)
    with _joined(config, modules) if config.address else _private(config, modules, weights) as cluster:
        if not config.autoscaling:
            check_resources(needs, config.address)
        yield cluster


@contextlib.contextmanager
def _joined(config: RayConfig, modules: Sequence[Path]) -> Iterator[Cluster]:
    address = named_by_environment(str(config.address))
    own = None
    if address != "auto":  # which Ray finds on this machine
        joining.require_listener(address, config.timeout_s)
        own = joining.own_node(address, config.timeout_s)
    _init(
        f"The Ray cluster at ray.address={config.address} cannot be joined ({joining.TOKEN_HINT})",
        address=address,
        # Of several nodes whose processes are seen here, the one whose address is this machine's.
        _node_ip_address=own if own is not None and not ipaddress.ip_address(own).is_loopback else None,
        # A worker sets its own niceness at its start; the raylet's default, which somebody else chose, is 15.
        runtime_env={
            "py_modules": [str(path) for path in (_PACKAGE, *modules)],
            "env_vars": {NICENESS: RAY_ENVIRONMENT[NICENESS]},
        },
    )
    try:
        yield Cluster(None)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _private(config: RayConfig, modules: Sequence[Path], weights: int) -> Iterator[Cluster]:
    _own_token()
    os.environ.update(RAY_worker_register_timeout_seconds=str(int(config.timeout_s)))
    folder = RayFolder()
    try:
        folder.sweep_if_killed()
        _init(
            "Ray could not be started on this machine",
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES + VERSIONS_AT_ONCE * weights,
            _temp_dir=str(folder.for_ray),
            runtime_env=_in_place(modules),
        )
        yield Cluster(folder.for_ray)
    finally:
        with _uninterrupted():
            _stop(folder.path)
            folder.remove()


def _own_token() -> None:
    """Give Ray a token by the environment. Without one it writes one into the home folder.

    A process that has used Ray before remembers that earlier token, and could not talk to the cluster it starts now.
    """
    if "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()


def _init(failure: str, **options: Any) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and bare Exception here
        raise ClusterError(f"{failure}: {error}") from error
    except SystemExit:  # raised by Ray's own SIGTERM handler, which replaces ours
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, handler)


def _in_place(modules: Sequence[Path]) -> dict[str, list[str]] | None:
    """The environment with which workers on this machine import modules from their folders."""
    return {"py_modules": [f"local://{root}" for root in import_roots(modules)]} if modules else None


def available_cpus() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def total() -> Needs:
    """The resources of the connected cluster, in use or not."""
    have = ray.cluster_resources()
    return Needs(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0))


def check_resources(needs: Needs, address: str | None) -> None:
    """Raise ClusterError if the connected cluster has fewer CPUs or GPUs than the run needs."""
    refuse_shortage(needs, total(), address)


def _copy_logs(folder: Path, target: Path) -> None:
    """Copy the logs of Ray's workers. A full disk raises nothing here, so that the error that matters is shown."""
    logs = folder / "session_latest" / "logs"
    with contextlib.suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        for pattern in ("worker-*.out", "worker-*.err", "raylet.err"):
            for path in logs.glob(pattern):
                if path.stat().st_size:
                    shutil.copy(path, target / path.name)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore further Ctrl-C and SIGTERM in a block that ends by itself within SHUTDOWN_TIMEOUT_S.

    Only the main thread receives signals, so a block in another thread has nothing to ignore.
    """
    if not _in_main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    """Whether signals come here, and may be handled otherwise: Python allows it in no other thread."""
    return threading.current_thread() is threading.main_thread()


def _stop(folder: Path) -> None:
    """End Ray and every process that it started here; kill those that do not stop when asked."""
    processes = _processes(folder)
    watchdog = threading.Timer(SHUTDOWN_TIMEOUT_S, _kill, [processes])
    watchdog.start()
    try:
        ray.shutdown()
    finally:
        watchdog.cancel()
    _, alive = psutil.wait_procs(processes, timeout=SHUTDOWN_TIMEOUT_S / 3)
    _kill(alive)
    psutil.wait_procs(alive, timeout=SHUTDOWN_TIMEOUT_S / 3)


def _processes(folder: Path) -> list[psutil.Process]:
    """Ray's daemons (their command lines name the session's folder) with all their descendants, such as the actors."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in part for part in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # already ended; psutil also refuses a reused process id
            process.kill()
