"""The parts of the cluster that need no running Ray."""

from __future__ import annotations

import re
import signal
import socket
import sys
from types import FrameType
from typing import Any

import pytest
import ray
from hypothesis import assume, given
from hypothesis import strategies as st

from rlpost.cluster import joining
from rlpost.cluster.ray_cluster import Needs, connect
from rlpost.cluster.shortage import refuse_shortage
from rlpost.config.schema import Config, RayConfig
from rlpost.errors import ClusterError


def test_needs_add_up_over_workers() -> None:
    config = Config()
    config.rollout.workers, config.rollout.cpus, config.rollout.gpus = 3, 0.5, 0.25
    config.learner.workers, config.learner.cpus, config.learner.gpus = 2, 2.0, 1.0
    assert Needs.of(config) == Needs(cpus=5.5, gpus=2.75)


def test_the_default_run_fits_two_cores() -> None:
    refuse_shortage(Needs.of(Config()), Needs(cpus=2, gpus=0), None)


def test_one_core_is_refused_with_figures_and_a_remedy_that_works() -> None:
    with pytest.raises(ClusterError, match=r"asks for 2 CPUs.*this machine has 1\..*rollout\.cpus=0\.5"):
        refuse_shortage(Needs.of(Config()), Needs(cpus=1, gpus=0), None)
    config = Config()
    config.rollout.cpus = config.learner.cpus = 0.5
    refuse_shortage(Needs.of(config), Needs(cpus=1, gpus=0), None)


CPUS = st.integers(0, 800).map(lambda hundredths: hundredths / 100)
COUNT = st.integers(1, 9)


@given(
    workers=COUNT,
    tensor_parallel=COUNT,
    ranks=COUNT,
    worker_cpus=CPUS,
    rank_cpus=CPUS,
    have=st.integers(0, 64),
)
def test_the_advice_about_cpus_always_fits(
    workers: int, tensor_parallel: int, ranks: int, worker_cpus: float, rank_cpus: float, have: int
) -> None:
    config = Config()
    rollout, learner = config.rollout, config.learner
    rollout.workers, rollout.tensor_parallel, rollout.cpus = workers, tensor_parallel, worker_cpus
    learner.workers, learner.cpus = ranks, rank_cpus
    assume(Needs.of(config).cpus > have)
    with pytest.raises(ClusterError) as refused:
        refuse_shortage(Needs.of(config), Needs(cpus=have, gpus=0), None)
    advice = re.search(r"rollout\.cpus=(\S+) learner\.cpus=(\S+) ", str(refused.value))
    if have == 0:
        assert advice is None, "no share of nothing"
        assert "Start a node that has some" in str(refused.value)
        return
    assert advice is not None
    rollout.cpus, learner.cpus = float(advice[1]), float(advice[2])
    assert rollout.cpus > 0
    refuse_shortage(Needs.of(config), Needs(cpus=have + 1e-9, gpus=0), None)


def test_missing_gpus_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"asks for 2 GPUs.*the cluster at auto has 1\."):
        refuse_shortage(Needs(cpus=0, gpus=2), Needs(cpus=8, gpus=1), "auto")


def test_an_address_where_nothing_listens_is_named() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=f"No Ray cluster answers at ray.address={address}"),
            connect(RayConfig(address=address, timeout_s=5), Needs(1, 0)),
        ):
            pytest.fail("the body must not run")


def test_an_ipv6_address_is_asked_at_its_host() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        taken.listen()
        address = f"[::1]:{taken.getsockname()[1]}"
        joining.require_listener(address, 5)
    with pytest.raises(ClusterError, match="No Ray cluster answers"):
        joining.require_listener(address, 5)


def test_sigterm_while_ray_starts_comes_to_the_handler_that_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray puts a handler of its own in place, which raises SystemExit."""

    def start(**options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    def ours(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", start)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(KeyboardInterrupt), connect(RayConfig(), Needs(1, 0)):
            pytest.fail("the body must not run")
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
