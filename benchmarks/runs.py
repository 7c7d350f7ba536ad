"""Runs the whole product for benchmarks: `python -m rlpost.run`, with its metrics and the memory of its processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf

SAMPLE_S = 0.5
ITERATIONS_ONLY = ("sft.steps=0", "eval.episodes=1", "eval.greedy=false", "tracking.wandb=disabled")


@dataclass(frozen=True)
class Run:
    iterations: list[dict[str, Any]]  # lines of metrics.jsonl
    peak_gib: float  # peak private memory, summed over the run's processes; 0 if not sampled
    settings: dict[str, Any]  # the resolved settings

    def seconds(self, part: str = "total", skip: int = 1) -> list[float]:
        """The seconds of each iteration, without the first `skip` iterations, which warm up."""
        return [line[f"seconds/{part}"] for line in self.iterations[skip:]]


def run(overrides: Sequence[str], memory: bool = False) -> Run:
    """Run the product and read its record. Raises RuntimeError with the run's output if it fails.

    `memory` samples the memory. Sampling walks through all pages of all processes and slows them down: an update of
    SmolLM2 took 1.4 times as long.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "rlpost.run", *overrides, f"output_dir={folder}"]
        with open(Path(scratch) / "log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            peak = _watch(psutil.Process(process.pid)) if memory else 0
            if process.wait() != 0:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read()}")
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        settings: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return Run([line for line in lines if line["stage"] == "rl"], peak / 2**30, settings)


def _watch(process: psutil.Process) -> int:
    """The peak of private memory in bytes, until the process ends."""
    peak = 0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        peak = max(peak, sum(map(_private, [process, *process.children(recursive=True)])))
        time.sleep(SAMPLE_S)
    return peak


def _private(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
