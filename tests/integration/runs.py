"""A run as a user starts it, in a process of its own, and the record that it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlpost.record.run_dir import read_trajectories
from rlpost.types import Trajectory

DEADLINE_S = 1500


def reproducible(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what the machine's load decides: times and memory."""
    return {key: value for key, value in line.items() if "seconds" not in key and "memory" not in key}


@dataclass
class Finished:
    """A run that is over: its folder, and what it printed."""

    folder: Path
    output: str

    @property
    def dtype(self) -> str:
        """The precision that it computed in."""
        return str(OmegaConf.load(self.folder / "config.yaml").dtype)

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The metrics of every RL iteration."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["stage"] == "rl"]

    def episodes(self, name: str) -> list[Trajectory]:
        return read_trajectories(self.folder / "trajectories" / f"{name}.jsonl")


def start(*overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlpost.run", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> str:
    """What the process printed until its end; one that misses the deadline is ended, with all that it started."""
    try:
        return process.communicate(timeout=deadline_s)[0]
    except subprocess.TimeoutExpired:
        end(process)
        raise


def end(process: subprocess.Popen[str]) -> None:
    """Ask the process to stop: a run ends its Ray then, a comparison its cells, which have sessions of their own."""
    process.terminate()
    try:
        process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()


def whole_run(folder: Path, *overrides: str) -> Finished:
    """A run in `folder`, waited for; it must succeed."""
    process = start(*overrides, f"output_dir={folder}")
    output = finish(process)
    assert process.returncode == 0, output
    return Finished(folder, output)
