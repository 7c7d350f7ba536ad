"""A trained policy on disk: an adapter and the model that it belongs to, from a run directory or an adapter folder."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rlpost.config.compose import compose
from rlpost.config.schema import Config
from rlpost.config.trust import named_code
from rlpost.errors import AdapterError, ModelError, OutputError
from rlpost.record.run_dir import RunDir
from rlpost.weights import models

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Policy:
    """The locations of a trained policy's parts."""

    adapter_folder: Path
    model_folder: Path
    settings: Config | None  # settings of the run that trained it; None if there is only an adapter

    @property
    def dtype(self) -> str | None:
        """The precision that the run computed in: float32 or bfloat16; None if it is unknown."""
        if self.settings is None or self.settings.dtype.value == "auto":
            return None
        return str(self.settings.dtype.value)


def find(folder: Path, model: str | None = None) -> Policy:
    """Find the policy of a run directory, or of a folder that holds only an adapter.

    Args:
        model: a name as `model=` takes it. None: the one that the record, or the adapter itself, names.

    Raises:
        OutputError: the folder is neither a run nor an adapter, or the run has no adapter.
        ModelError: the model cannot be found; if it has moved, the message says how to name it.
        ConfigError: the record's settings do not fit today's schema.
    """
    if is_run(folder):
        run_dir = RunDir(folder)
        settings = settings_of(run_dir)
        adapter = adapter_of(run_dir, settings)
        return Policy(adapter, _model(model or settings.model, folder, model is None), settings)
    if (folder / ADAPTER_CONFIG).is_file():
        return Policy(folder, _model(model or _base_of(folder), folder, model is None), None)
    raise OutputError(
        f"{folder}\n  reason: it is neither a run (config.yaml, trajectories/) nor an adapter ({ADAPTER_CONFIG})\n"
        "  remedy: name the folder that a run printed, or its adapter/"
    )


def adapter_of(run_dir: RunDir, settings: Config) -> Path:
    """The folder of a run's adapter. Raises OutputError if the run has none."""
    if not (run_dir.adapter / ADAPTER_CONFIG).is_file():
        raise OutputError(
            f"{run_dir.path}\n  reason: the run has no adapter/: it trained none (task={settings.task.value}), or ended"
            " before its first swap\n  remedy: name a run that has trained, or go on with this one:"
            f" python -m rlpost.run {shlex.quote(f'resume={run_dir.path}')}"
        )
    return run_dir.adapter


def is_run(folder: Path) -> bool:
    """Whether a folder holds the record of a run, finished or not."""
    run_dir = RunDir(folder)
    return run_dir.config.is_file() and run_dir.trajectories.is_dir()


def run_at(folder: Path) -> RunDir:
    """The record of a run. Raises OutputError if the folder holds none."""
    if not is_run(folder):
        raise OutputError(
            f"{folder}\n  reason: it is no run (config.yaml and trajectories/ are not both there)\n"
            "  remedy: name a folder that python -m rlpost.run printed"
        )
    return RunDir(folder)


def settings_of(run_dir: RunDir) -> Config:
    """A run's settings, typed, for reading only: nothing that they name is imported or called.

    Raises ConfigError if the record does not fit today's schema.
    """
    record = run_dir.read_config()
    code = named_code(str(record.get("env", "")), record.get("env_args") or {})
    named = [f"{key}={value}" for key, value in code.items()]
    return compose([f"resume={run_dir.path}", "ray.address=null", *named])


def _base_of(folder: Path) -> str:
    """The name of the base model in an adapter's configuration. Raises AdapterError if there is none."""
    path = folder / ADAPTER_CONFIG
    try:
        name = json.loads(path.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not name:
        raise AdapterError(
            f"{path}\n  reason: it names no base model (base_model_name_or_path)\n"
            "  remedy: say which one it was trained on: --model MODEL"
        )
    return name


def _model(name: str, folder: Path, from_record: bool) -> Path:
    try:
        return models.resolve(name)
    except ModelError as error:
        if not from_record:
            raise
        raise ModelError(
            f"{folder}\n  reason: it was trained on {name}, which is not there: {error}\n"
            "  remedy: if the model has moved, say where it is: --model FOLDER (or a hub id)"
        ) from error
