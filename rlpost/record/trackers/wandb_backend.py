"""Sends metrics to Weights & Biases. Only this file imports wandb.

wandb sends in its own process and has its own deadlines: what is not uploaded a minute after the end stays on the disk,
for `wandb sync`.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from rlpost.config.schema import Config
from rlpost.record.files import write_atomic
from rlpost.record.trackers.backend import DEADLINE_S

Mode = Literal["online", "offline", "disabled"]

MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
# The values of the variable WANDB_MODE.
WANDB_MODES: dict[str, Mode] = {**MODES, "run": "online", "dryrun": "offline"}
DEFAULT_HOST = "api.wandb.ai"
ID_FILE = "wandb-id.txt"  # lets a run that is resumed online continue its wandb run


def has_wandb_key() -> bool:
    """Whether wandb could log online: there is a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ["NETRC"]) if "NETRC" in os.environ else Path.home() / ".netrc"
    host = os.environ.get("WANDB_BASE_URL", DEFAULT_HOST)
    try:
        return netrc.netrc(path).authenticators(host.rpartition("://")[2].rstrip("/")) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(wanted: str) -> Mode:
    """The mode of a tracking.wandb value: `auto` is WANDB_MODE, else online with a key and offline without one.

    Raises KeyError for an unknown WANDB_MODE, which validation has refused before.
    """
    if wanted != "auto":
        return MODES[wanted]
    if said := os.environ.get("WANDB_MODE"):
        return WANDB_MODES[said]
    return "online" if has_wandb_key() else "offline"


class WandbBackend:
    """One wandb run, with all its files under `run_dir`/wandb."""

    def __init__(self, config: Config, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Raises whatever wandb raises, after at most DEADLINE_S seconds."""
        os.environ["WANDB_SILENT"] = "true"  # wandb reads it at import, before any Settings
        import wandb

        mode = resolve_mode(config.tracking.wandb)
        run_id, name = _identity(run_dir, mode)
        self._known: set[str] = set()  # keys whose axis wandb knows
        self._run: Any = wandb.init(
            project=config.tracking.project,
            id=run_id,
            resume="allow" if mode == "online" else None,
            name=name,
            group=config.name,
            dir=str(run_dir),
            config=dict(settings),
            mode=mode,
            settings=wandb.Settings(
                silent=True,
                console="off",
                quiet=True,
                init_timeout=DEADLINE_S,
                finish_timeout=DEADLINE_S,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        """Log metrics. wandb's own count cannot be the axis: it never goes back, and each kind of step begins at 0."""
        self._define(metrics, over)
        self._run.log(dict(metrics))

    def _define(self, metrics: Iterable[str], over: str) -> None:
        for key in sorted({*metrics} - self._known):
            self._run.define_metric(key, step_metric=None if key == over else over)
            self._known.add(key)

    def finish(self) -> None:
        self._run.finish()


def _identity(run_dir: Path, mode: Mode) -> tuple[str, str]:
    """The id and name of this start in wandb.

    A run that is resumed online continues its wandb run. Offline, each start is a separate, numbered wandb run: `wandb
    sync` sends a folder from line 0 on, whatever `resume` was (wandb 0.31 does not write it to the folder), so a second
    folder with the same id would overwrite the first.
    """
    if mode == "offline":
        earlier = len(list(run_dir.glob("wandb/*run-*")))
        return uuid4().hex, f"{run_dir.name}-{earlier + 1}" if earlier else run_dir.name
    path = run_dir / ID_FILE
    if not path.is_file():
        write_atomic(path, uuid4().hex.encode())
    return path.read_text(encoding="utf-8"), run_dir.name
