"""The port on which the ranks meet is never free between being chosen and being listened on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlpost import learner
from rlpost.errors import LearnerError
from rlpost.learner.rendezvous import (
    GLOO_INTERFACE,
    NCCL_INTERFACE,
    Rendezvous,
    bind_collectives,
    bound_socket,
    port_of,
    rendezvous_of,
)

TWO_RANKS = """
import os, sys
import torch
import torch.distributed as dist
from rlpost.config.schema import LearnerConfig
from rlpost.learner.deepspeed_backend import _join
from rlpost.learner.rendezvous import Rendezvous, bound_socket, port_of

held, host = bound_socket(), sys.argv[1]
port, child = port_of(held), os.fork()
if child:
    rendezvous = Rendezvous(host, port, 0, 2, held.detach())
else:
    held.close()
    rendezvous = Rendezvous(host, port, 1, 2)
_join(rendezvous, LearnerConfig(timeout_s=60), torch.device("cpu"))
total = torch.ones(1) * (rendezvous.rank + 1)
dist.all_reduce(total)
assert total.item() == 3
dist.destroy_process_group()
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("met")
"""


@pytest.mark.parametrize("reuse", [0, 1])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_nobody_else_gets_a_port_that_is_held(reuse: int, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    with bound_socket() as held, socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        with pytest.raises(OSError, match="in use"):
            other.bind(("", port_of(held)))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ranks_meet_on_the_socket_that_was_held(host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    done = subprocess.run(
        [sys.executable, "-c", TWO_RANKS, host],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(learner.__file__).parents[2],
    )
    assert done.stdout.split() == ["met"], done.stderr


def test_ranks_of_one_node_leave_the_interface_to_gloo() -> None:
    ranks = rendezvous_of([("10.0.0.1", 5), ("10.0.0.1", 6)])
    assert ranks == [Rendezvous("10.0.0.1", 5, 0, 2), Rendezvous("10.0.0.1", 5, 1, 2)]


def test_ranks_of_several_nodes_bind_to_their_own_addresses() -> None:
    ranks = rendezvous_of([("10.0.0.1", 5), ("10.0.0.2", 6), ("10.0.0.1", 7)])
    assert [(rank.host, rank.port) for rank in ranks] == [("10.0.0.1", 5)] * 3
    assert [rank.own_address for rank in ranks] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


def test_collectives_use_the_interface_with_the_address_or_the_one_that_the_node_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (GLOO_INTERFACE, NCCL_INTERFACE):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    loopback = next(name for name, held in psutil.net_if_addrs().items() if held[0].address == "127.0.0.1")
    with pytest.raises(LearnerError, match=r"has the address 192\.0\.2\.1.*\n  remedy: .*GLOO_SOCKET_IFNAME"):
        bind_collectives("192.0.2.1")
    monkeypatch.setenv(NCCL_INTERFACE, "ib0")
    bind_collectives("127.0.0.1")
    assert (os.environ[GLOO_INTERFACE], os.environ[NCCL_INTERFACE]) == (loopback, "ib0")
    bind_collectives("192.0.2.1")  # both are named, so the address is not looked for
