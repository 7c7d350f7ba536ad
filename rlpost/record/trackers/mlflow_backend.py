"""Sends metrics to MLflow: a server, or a database in the run directory. Only this file imports MLflow.

mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlpost.config.schema import Config
from rlpost.record.files import write_atomic
from rlpost.record.trackers.backend import plain_name
from rlpost.record.trackers.background import Background

T = TypeVar("T")

DATABASE = "mlflow.db"  # in the run directory
ID_FILE = "mlflow-id.txt"  # lets a resumed run continue its MLflow run
MOST_PARAMS, MOST_METRICS = 100, 1000  # limits of MLflow for one call
LONGEST_PARAM = 500  # characters that every kind of MLflow store accepts


def wanted_uri(config: Config) -> str | None:
    """The configured server or database; None if the run's own database is used."""
    return config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or None


def start(config: Config, run_dir: Path, settings: Mapping[str, Any]) -> Background:
    """Raises ImportError without MLflow. Errors of a server appear in later calls."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it at import
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)

    def opened() -> MlflowRun:
        uri = wanted_uri(config)
        client = mlflow.MlflowClient(uri or f"sqlite:///{run_dir.resolve() / DATABASE}")
        return MlflowRun(client, config, run_dir, settings, local=uri is None)

    return Background("mlflow", opened)


class MlflowRun:
    """One MLflow run; `client` is an mlflow.MlflowClient. Every call may wait for a server.

    `local`: whether the store is the run's own. Artifacts, if somebody adds some, then go to the run directory too.
    """

    def __init__(
        self, client: Any, config: Config, run_dir: Path, settings: Mapping[str, Any], local: bool
    ) -> None:
        self._client, self._id_file = client, run_dir / ID_FILE
        self._run_id = self._earlier() or self._new(config, run_dir, settings, local)

    def _earlier(self) -> str | None:
        """The MLflow run of an earlier start; None if there is none, or it is on another server."""
        from mlflow.exceptions import MlflowException

        if not self._id_file.is_file():
            return None
        run_id = self._id_file.read_text(encoding="utf-8")
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run_id

    def _new(self, config: Config, run_dir: Path, settings: Mapping[str, Any], local: bool) -> str:
        from mlflow.entities import Param

        project = config.tracking.project
        found = self._client.get_experiment_by_name(project)
        artifacts = str(run_dir.resolve() / "mlflow-artifacts") if local else None
        experiment = found.experiment_id if found else self._client.create_experiment(project, artifacts)
        tags = {"experiment": config.name}
        run_id: str = self._client.create_run(experiment, tags=tags, run_name=run_dir.name).info.run_id
        write_atomic(self._id_file, run_id.encode())
        params = [Param(plain_name(key), value[:LONGEST_PARAM]) for key, value in _flat(settings)]
        for some in _batches(params, MOST_PARAMS):
            self._client.log_batch(run_id, params=some)
        return run_id

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(metrics[over])
        values = [Metric(plain_name(key), float(value), now, step) for key, value in metrics.items()]
        for some in _batches(values, MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=some)

    def finish(self) -> None:
        self._client.set_terminated(self._run_id)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted key, with its value as JSON; texts are unchanged."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _batches(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[i : i + most] for i in range(0, len(items), most))
