"""Metrics to Weights & Biases, when wanted. The only import of wandb; metrics.jsonl does not depend on it.

A tracker never stops a run: the first failure (no network, full disk, broken install) is warned about once with
its reason, and tracking is off from then on.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlpost.config import Config

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
DEFAULT_HOST = "api.wandb.ai"


def has_wandb_key() -> bool:
    """Whether wandb could log online: a key in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ["NETRC"]) if "NETRC" in os.environ else Path.home() / ".netrc"
    host = os.environ.get("WANDB_BASE_URL", DEFAULT_HOST)
    try:
        return netrc.netrc(path).authenticators(host.rpartition("://")[2].rstrip("/")) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(wanted: str) -> Mode:
    """What a tracking.wandb value stands for: `auto` is online when a key is there, else offline."""
    if wanted == "auto":
        return "online" if has_wandb_key() else "offline"
    return MODES[wanted]


class Tracker:
    """One wandb run with all its files under `run_dir`/wandb; does nothing when disabled."""

    def __init__(self, config: Config, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """`settings` is the resolved configuration as plain data, to show beside the metrics."""
        self._run: Any = None
        mode = resolve_mode(config.tracking.wandb)
        if mode == "disabled":
            return
        try:
            self._run = _start(config, run_dir, settings, mode)
        except Exception as error:  # whatever a foreign service throws, the run goes on
            self._give_up("start", error)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one step's metrics."""
        if self._run is None:
            return
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:
            self._give_up("log", error)

    def finish(self) -> None:
        """Flush and end the run; safe to call twice."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            self._give_up("finish", error)

    def _give_up(self, doing: str, error: Exception) -> None:
        self._run = None
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(
            "wandb could not %s (%s: %s): tracking is off, the run goes on and metrics.jsonl has every figure",
            doing,
            type(error).__name__,
            reason,
        )


def _start(config: Config, run_dir: Path, settings: Mapping[str, Any], mode: Mode) -> Any:
    os.environ["WANDB_SILENT"] = "true"  # read when wandb is imported, before any Settings
    import wandb

    return wandb.init(
        project=config.tracking.project,
        name=run_dir.name,
        group=config.name,
        dir=str(run_dir),
        config=dict(settings),
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            quiet=True,
            init_timeout=60,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
        ),
    )
