"""Refuses addresses of clusters that a run cannot join, and an environment that leaves open which one is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rlpost.cluster.addresses import ADDRESS_VARIABLE, form_of, host_and_port
from rlpost.config.keys import refusal
from rlpost.config.schema import Config, Task

_ON_A_NODE = (
    "run rlpost on a node of the cluster with ray.address=auto; `ray start --address=HOST:6379 --num-cpus=0` makes"
    " this machine one that lends no CPUs"
)
_REASONS = {
    "ray": "Ray Client, to which these addresses belong, cannot stream episodes to the driver",
    "http": "it is the address of Ray's job server",
}
_REMEDIES = {
    "ray": _ON_A_NODE,
    "http": "submit the run: `ray job submit --address=URL -- rlpost ... ray.address=auto`",
}


def cluster_address(config: Config) -> Iterator[str]:
    """Refusals of `ray.address` and of RAY_ADDRESS, which Ray reads if `ray.address` is `auto`."""
    address, from_environment = config.ray.address, os.environ.get(ADDRESS_VARIABLE, "")
    if address is None:
        if _opens_ray(config) and from_environment not in ("", "local"):
            yield refusal(
                ADDRESS_VARIABLE,
                from_environment,
                "the environment names a Ray cluster, and ray.address does not say whether to join it",
                f"give ray.address=auto to join it, or unset {ADDRESS_VARIABLE} to start Ray on this machine",
            )
    elif address != "auto":
        yield from _refused("ray.address", str(address), "auto, host:port ([::1]:6379 for IPv6), or null")
    elif from_environment not in ("", "auto"):
        yield from _refused(ADDRESS_VARIABLE, from_environment, "host:port, or unset it")


def _refused(key: str, address: str, allowed: str) -> Iterator[str]:
    form = form_of(address)
    if form in _REASONS:
        yield refusal(key, address, _REASONS[form], _REMEDIES[form])
        return
    try:
        host_and_port(address)
    except ValueError:
        yield refusal(key, address, "not an address", f"give {allowed}")


def _opens_ray(config: Config) -> bool:
    return config.task not in (Task.dry_run, Task.tiny_base) and config.eval.endpoint is None
