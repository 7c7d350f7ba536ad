"""Whether this machine is a node of a cluster; asked before Ray is, which would hang or abort."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from rlpost.cluster import joining
from rlpost.cluster.joining import nodes_here, own_addresses, own_node
from rlpost.errors import ClusterError


def node(address: str, socket: Path, state: int = GcsNodeInfo.ALIVE) -> Any:
    return SimpleNamespace(node_manager_address=address, raylet_socket_name=str(socket), state=state)


@pytest.fixture
def raylet(tmp_path: Path) -> Path:
    path = tmp_path / "raylet"
    path.touch()
    return path


def test_a_node_is_here_by_its_address_and_its_socket(raylet: Path) -> None:
    gone = raylet.with_name("gone")
    found = [
        node("10.0.0.1", raylet),
        node("10.0.0.2", raylet),
        node("10.0.0.3", gone),
        node("fe80::1", raylet),
    ]
    assert nodes_here(found, {"10.0.0.2", "10.0.0.3", "fe80::1"}) == ["10.0.0.2", "fe80::1"]
    assert nodes_here(found, set()) == []


def test_this_machine_has_its_loopback_address() -> None:
    assert "127.0.0.1" in own_addresses()


def cluster_of(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def told(timeout: float) -> dict[int, Any]:
        if isinstance(answer, Exception):
            raise answer
        return dict(enumerate(answer))

    monkeypatch.setattr(joining, "GcsClient", lambda address: SimpleNamespace(get_all_node_info=told))


def test_a_machine_outside_the_cluster_is_told_the_ways_in(
    raylet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("192.0.2.7", raylet), node("127.0.0.1", raylet, GcsNodeInfo.DEAD)]
    cluster_of(monkeypatch, nodes)
    with pytest.raises(
        ClusterError, match=r"not a node of .*head:6379, whose nodes are: 192\.0\.2\.7\."
    ) as refused:
        own_node("head:6379", 5)
    told = str(refused.value)
    assert "\n  remedy: make it one with `ray start --address=head:6379 --num-cpus=0`" in told
    assert "ray job submit" in told
    cluster_of(monkeypatch, [*nodes, node("127.0.0.1", raylet)])
    assert own_node("head:6379", 5) == "127.0.0.1"


def test_a_cluster_that_does_not_answer_is_named_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, RuntimeError("Unauthenticated"))
    with pytest.raises(
        ClusterError, match=r"head:6379 does not tell its nodes .*RAY_AUTH_TOKEN.*Unauthenticated"
    ):
        own_node("head:6379", 5)
