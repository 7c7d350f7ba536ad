"""The doctor's look at a real Ray cluster: two nodes, each with its raylet, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlpost.config.schema import RayConfig
from rlpost.doctor.cluster import look_at
from rlpost.doctor.finding import Level
from rlpost.doctor.nodes import node_findings
from rlpost.record.versions import versions

pytestmark = pytest.mark.integration

HOST = """
import sys
from ray.cluster_utils import Cluster

size = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **size})
cluster.add_node(num_cpus=3, object_store_memory=100 * 2**20)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert host.stdout is not None
    try:
        yield host.stdout.readline().strip()
    finally:
        host.communicate(timeout=60)  # closes its standard input, upon which it ends


def test_every_node_and_both_ways_between_them_are_looked_at(address: str) -> None:
    found = look_at(RayConfig(address=address, timeout_s=30.0))
    assert sorted(node.cpus for node in found.nodes) == [1.0, 3.0]
    assert all(node.facts is not None and node.facts.memory > 0 for node in found.nodes)
    assert [bool(link.mib_per_s and link.mib_per_s > 0) for link in found.links] == [True, True]
    assert [link.port_fault for link in found.links] == ["", ""]
    judged = list(node_findings(found, versions()))
    about = {each.what for each in judged if each.level is Level.ok}
    assert {"versions", "clock", "packages"} <= about
