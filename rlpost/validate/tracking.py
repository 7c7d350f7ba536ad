"""Refuses trackers that cannot be used, as part of rlpost.validate.checks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.record.trackers.secrets import without_users
from rlpost.record.trackers.wandb_backend import MODES, WANDB_MODES, has_wandb_key, resolve_mode
from rlpost.record.tracking import KINDS, missing_modules

WANDB_CHOICES = ("auto", *MODES)
MLFLOW_SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")


def tracking(config: Config) -> Iterator[str]:
    names = config.tracking.backends
    if unknown := [name for name in names if name not in KINDS]:
        choices = ", ".join(KINDS)
        yield refusal("tracking.backends", names, f"unknown: {', '.join(unknown)}", f"give some of {choices}")
    elif len(set(names)) < len(names):
        yield refusal("tracking.backends", names, "one is named twice", "name each once")
    else:
        yield from _wandb(config) if "wandb" in names else ()
        yield from _installed(config)
        yield from _mlflow(config) if "mlflow" in names else ()


def _installed(config: Config) -> Iterator[str]:
    """Refusals of trackers whose packages are missing, so that a long run does not fail at its end."""
    for name in config.tracking.backends:
        if name == "wandb" and config.tracking.wandb == "disabled":
            continue
        if missing := missing_modules(config, name):
            reason = f"{name} needs what is not installed: {', '.join(missing)}"
            remedy = f"{KINDS[name].install}, or leave {name} out"
            yield refusal("tracking.backends", config.tracking.backends, reason, remedy)


def _mlflow(config: Config) -> Iterator[str]:
    uri = config.tracking.mlflow_uri
    if uri is not None and not re.match(rf"(?:{'|'.join(MLFLOW_SCHEMES)})(?:\+\w+)?(?::|$)", uri):
        remedy = (
            "give http://host:5000, sqlite:////folder/mlflow.db, or null for a database in the run directory"
        )
        yield refusal("tracking.mlflow_uri", without_users(uri), "neither a server nor a database", remedy)


def _wandb(config: Config) -> Iterator[str]:
    mode, said = config.tracking.wandb, os.environ.get("WANDB_MODE")
    if mode not in WANDB_CHOICES:
        yield refusal("tracking.wandb", mode, "unknown", "give one of " + ", ".join(WANDB_CHOICES))
    elif mode == "auto" and said and said not in WANDB_MODES:
        remedy = "set the variable to one of " + ", ".join(WANDB_MODES) + ", or give tracking.wandb"
        yield refusal("WANDB_MODE", said, "unknown", remedy)
    elif resolve_mode(mode) == "online" and not has_wandb_key():
        yield refusal(
            "tracking.wandb",
            mode,
            "no key: neither WANDB_API_KEY nor ~/.netrc has one",
            "wandb login, or offline",
        )
