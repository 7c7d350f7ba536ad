"""The port on which the ranks meet is never free between being chosen and being listened on."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlpost import learner
from rlpost.learner.rendezvous import bound_socket, port_of

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
