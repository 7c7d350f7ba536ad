"""Sends a run's metrics to the trackers in `tracking.backends`; metrics.jsonl does not depend on them.

    Trackers ─▶ wandb        rlpost/record/trackers/wandb_backend.py
             ─▶ tensorboard  rlpost/record/trackers/tensorboard_backend.py
             ─▶ mlflow       rlpost/record/trackers/mlflow_backend.py

A tracker never stops a run: the first failure (no network, full disk, broken install) gives one warning with its
reason, and that tracker is off from then on. A tracker never blocks a run either: every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rlpost.config.schema import Config
from rlpost.record.summary import DECODINGS, shown_ks
from rlpost.record.trackers.backend import Backend
from rlpost.record.trackers.mlflow_backend import wanted_uri
from rlpost.record.trackers.secrets import without_secrets, without_users
from rlpost.record.trackers.wandb_backend import resolve_mode

logger = logging.getLogger(__name__)

_also: ContextVar[Mapping[str, Backend]] = ContextVar("_also", default=MappingProxyType({}))

Start = Callable[[Config, Path, Mapping[str, Any]], Backend]


class Tracker(Protocol):
    """Takes a run's metrics in addition to its record. No method raises."""

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        """Send metrics with the x-axis `over`, one of their keys: each kind of step begins at 0."""

    def log_evaluation(self, evaluation: Mapping[str, Any], over: str, finished: int) -> None:
        """Send an evaluation, by variant, with `finished` iterations or steps as its x on the axis `over`."""

    def finish(self) -> None:
        """Send what is left and end. It may be called twice."""


class Trackers:
    """The trackers of a run. Each is dropped at its first failure."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(backends)

    @classmethod
    def start(cls, config: Config, run_dir: Path, settings: Mapping[str, Any]) -> Trackers:
        """`settings` is the resolved configuration as plain data, shown beside the metrics without its secrets."""
        shown, started = without_secrets(dict(settings)), {}
        for name in wanted(config):
            try:
                started[name] = KINDS[name].start(config, run_dir, shown)
            except Exception as error:  # the run goes on, whatever a foreign service raises
                _warn(name, "start", error)
        return cls({**started, **_also.get()})

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        self._each("log", lambda backend: backend.log(metrics, over))

    def log_evaluation(self, evaluation: Mapping[str, Any], over: str, finished: int) -> None:
        self.log({over: finished, **evaluation_figures(evaluation)}, over)

    def finish(self) -> None:
        self._each("finish", lambda backend: backend.finish())
        self._backends.clear()

    def _each(self, doing: str, call: Callable[[Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                call(backend)
            except Exception as error:
                del self._backends[name]
                _warn(name, doing, error)


@contextlib.contextmanager
def also(backends: Mapping[str, Backend]) -> Iterator[None]:
    """Have the runs that start within this `with` log to these as well, whatever `tracking.backends` names."""
    token = _also.set({**_also.get(), **backends})
    try:
        yield
    finally:
        _also.reset(token)


def evaluation_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """eval/VARIANT/DECODING/FIGURE: success, and with several samples pass@k and majority@k for some k."""
    figures = {}
    for variant, entry in evaluation.items():
        for decoding in (d for d in DECODINGS if d in entry):
            figures[f"eval/{variant}/{decoding}/success"] = entry[decoding]["success"]
            for name in ("pass_at", "majority_at"):
                by_k = entry[decoding].get(name) or {}
                for k in shown_ks(by_k):
                    figures[f"eval/{variant}/{decoding}/{name}_{k}"] = by_k[k]["value"]
    return figures


def _warn(name: str, doing: str, error: Exception) -> None:
    reason = without_users((str(error).splitlines() or [""])[0])
    logger.warning(
        "%s could not %s (%s: %s): it is off from here on, the run goes on and metrics.jsonl has every figure",
        name,
        doing,
        type(error).__name__,
        reason,
    )


def _wandb(config: Config, run_dir: Path, settings: Mapping[str, Any]) -> Backend:
    from rlpost.record.trackers.wandb_backend import WandbBackend

    return WandbBackend(config, run_dir, settings)


def _tensorboard(config: Config, run_dir: Path, settings: Mapping[str, Any]) -> Backend:
    from rlpost.record.trackers.tensorboard_backend import TensorBoardBackend

    return TensorBoardBackend(run_dir, settings)


def _mlflow(config: Config, run_dir: Path, settings: Mapping[str, Any]) -> Backend:
    from rlpost.record.trackers.mlflow_backend import start

    return start(config, run_dir, settings)


@dataclass(frozen=True)
class Kind:
    """A kind of tracker: how it starts, the modules it needs, and how to install them."""

    start: Start
    modules: Callable[[Config], Sequence[str]]
    install: str


KINDS: Mapping[str, Kind] = {
    "wandb": Kind(_wandb, lambda config: ("wandb",), "pip install wandb"),
    "tensorboard": Kind(_tensorboard, lambda config: ("tensorboard",), "pip install tensorboard"),
    "mlflow": Kind(
        _mlflow,
        # A server has its own database; the run's own database needs these.
        lambda config: ("mlflow",) if wanted_uri(config) else ("mlflow", "sqlalchemy", "alembic"),
        "pip install mlflow",
    ),
}


def wanted(config: Config) -> list[str]:
    """The configured trackers. wandb is left out if its mode is disabled."""
    names = config.tracking.backends
    return [name for name in names if name != "wandb" or resolve_mode(config.tracking.wandb) != "disabled"]


def missing_modules(config: Config, name: str) -> list[str]:
    """The modules that a tracker needs and that are not installed."""
    return [module for module in KINDS[name].modules(config) if find_spec(module) is None]
