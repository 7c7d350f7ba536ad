"""Metrics to Weights & Biases, when wanted. The only import of wandb; metrics.jsonl does not depend on it.

A tracker never stops a run: the first failure (no network, full disk, broken install) is warned about once with
its reason, and tracking is off from then on. Nor does it hold one up: what is not uploaded a minute after the end
stays on the disk, for `wandb sync`.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from rlpost.config.schema import Config
from rlpost.record.files import write_atomic
from rlpost.record.summary import DECODINGS

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
WANDB_MODES: dict[str, Mode] = {**MODES, "run": "online", "dryrun": "offline"}  # of the variable WANDB_MODE
DEFAULT_HOST = "api.wandb.ai"
DEADLINE_S = 60  # of wandb's start, and of its last uploads
ID_FILE = (
    "wandb-id.txt"  # in the run directory, so that a run that is resumed online goes on in its wandb run
)


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
    """What a tracking.wandb value stands for: `auto` is WANDB_MODE, else online with a key and offline without one.

    Raises KeyError for a WANDB_MODE that is none, which validation has refused.
    """
    if wanted != "auto":
        return MODES[wanted]
    if said := os.environ.get("WANDB_MODE"):
        return WANDB_MODES[said]
    return "online" if has_wandb_key() else "offline"


class Tracker:
    """One wandb run with all its files under `run_dir`/wandb; does nothing when disabled."""

    def __init__(self, config: Config, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """`settings` is the resolved configuration as plain data, to show beside the metrics."""
        self._run: Any = None
        self._known: set[str] = set()  # keys whose axis wandb has been told
        mode = resolve_mode(config.tracking.wandb)
        if mode == "disabled":
            return
        try:
            self._run = _start(config, run_dir, settings, mode)
        except Exception as error:  # whatever a foreign service throws, the run goes on
            self._give_up("start", error)

    def log(self, metrics: Mapping[str, float], over: str | None = None) -> None:
        """Send metrics, to be drawn over the key `over` of theirs, without one over wandb's own count.

        That count cannot be ours: it never goes back, while supervised steps and iterations each begin at 0.
        """
        if self._run is None:
            return
        try:
            if over is not None:
                self._define(metrics, over)
            self._run.log(dict(metrics))
        except Exception as error:
            self._give_up("log", error)

    def log_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Send the result of an evaluation, by variant: the success in each decoding."""
        self.log(
            {
                f"eval/{variant}/{decoding}/success": entry[decoding]["success"]
                for variant, entry in evaluation.items()
                for decoding in DECODINGS
                if decoding in entry
            }
        )

    def _define(self, metrics: Iterable[str], over: str) -> None:
        for key in sorted({*metrics} - self._known):
            self._run.define_metric(key, step_metric=None if key == over else over)
            self._known.add(key)

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


def _identity(run_dir: Path, mode: Mode) -> tuple[str, str]:
    """What wandb knows this start by: id and name.

    A run that is resumed online goes on in its wandb run. Offline each start is a wandb run of its own, numbered:
    `wandb sync` sends a folder from line 0 on, whatever `resume` was (wandb 0.31 does not write it to the folder),
    so that the second of one id would erase the first.
    """
    if mode == "offline":
        earlier = len(list(run_dir.glob("wandb/*run-*")))
        return uuid4().hex, f"{run_dir.name}-{earlier + 1}" if earlier else run_dir.name
    path = run_dir / ID_FILE
    if not path.is_file():
        write_atomic(path, uuid4().hex.encode())
    return path.read_text(encoding="utf-8"), run_dir.name


def _start(config: Config, run_dir: Path, settings: Mapping[str, Any], mode: Mode) -> Any:
    os.environ["WANDB_SILENT"] = "true"  # read when wandb is imported, before any Settings
    import wandb

    run_id, name = _identity(run_dir, mode)
    return wandb.init(
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
