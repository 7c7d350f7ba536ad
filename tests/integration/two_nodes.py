"""A Ray cluster of two nodes that share nothing but the cluster; tests/integration/machines.py makes the machines."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.integration.machines import PYTHON, ROOT, Machine, boot, connect, two_machines

PORT = 6379
CPUS = 2  # that each node declares
FOLDER = "/tmp/user"  # the driver's working directory; it exists on the head alone
START_S = 90.0


@dataclass
class TwoNodes:
    """The head, where the driver runs, and the other node, which may be lost and replaced."""

    head: Machine
    other: Machine
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    @property
    def folder(self) -> Path:
        """Where this process sees FOLDER."""
        return self.head.path(FOLDER)

    def driver(
        self, *words: str, machine: Machine | None = None, module: str = "rlpost.run", **environment: str
    ) -> subprocess.Popen[str]:
        """`rlpost.run`, or another module, on the head (or another `machine`), as a user starts it in FOLDER."""
        variables = {**self._environment(), "PYTHONPATH": str(ROOT), **environment}
        command = (machine or self.head).command(PYTHON, "-m", module, *words, folder=FOLDER, **variables)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def start_head(self) -> None:
        # Ray's dashboard needs packages that rlpost does without.
        self._ray(self.head, "--head", f"--port={PORT}", "--include-dashboard=false", "--disable-usage-stats")

    def start_other(self) -> None:
        self._ray(self.other, f"--address={self.address}")

    def replace_other(self) -> None:
        """End the other machine, whatever is left of it, and join a fresh one of the same name and address."""
        self.other.end()
        self.other = boot(self.other.name, self.other.address, with_checkout=False)
        connect(self.head, self.other)
        self.start_other()

    def actors_so_far(self) -> int:
        """The number of actors that anybody has asked the cluster for, by its log."""
        (log,) = self.head.path("/tmp/ray").glob("session_2*/logs/gcs_server.out")
        return log.read_text().count("Registering actor")

    def _ray(self, machine: Machine, *options: str) -> None:
        start = [PYTHON, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={machine.address}"]
        sizes = [f"--num-cpus={CPUS}", f"--object-store-memory={256 * 2**20}"]
        machine.call(*start, *sizes, *options, timeout_s=START_S, **self._environment())

    def _environment(self) -> dict[str, str]:
        """What docs/clusters.md has the user set on every node, and no look-up of a model hub."""
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_worker_niceness": "0"}
        return {**ray, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Both nodes up and joined; they end with the block."""
    with two_machines() as (head, other):
        nodes = TwoNodes(head, other)
        try:
            nodes.start_head()
            nodes.start_other()
            yield nodes
        finally:
            nodes.other.end()  # which may be another than at first


def finish(run: subprocess.Popen[str], timeout_s: float) -> str:
    """What a driver printed until its end. One that misses its deadline is killed, and fails the test."""
    try:
        return run.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        pytest.fail(f"the run did not end within {timeout_s:g} s; {kill(run)}")


def kill(run: subprocess.Popen[str]) -> str:
    """Kill a driver; says what it had printed."""
    for inside in psutil.Process(run.pid).children():  # the driver itself, for which `nsenter` waits
        inside.kill()
    return f"it printed:\n{run.communicate(timeout=30)[0]}"
