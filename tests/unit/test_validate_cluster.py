"""Addresses that no run can join, and an environment that leaves open which cluster is meant."""

from __future__ import annotations

import pytest

from rlpost.config.schema import Config, Task
from rlpost.validate.cluster import cluster_address


def refusals(
    address: str | None, environment: str | None, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> str:
    if environment is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    config = Config(**settings)  # type: ignore[arg-type]
    config.ray.address = address
    return "\n".join(cluster_address(config))


@pytest.mark.parametrize(
    ("address", "environment"),
    [
        (None, None),
        (None, ""),
        (None, "local"),
        ("auto", None),
        ("auto", ""),
        ("auto", "auto"),
        ("auto", "head:6379"),
        ("head:6379", "other:6379"),
        ("[::1]:6379", "ray://other:10001"),
    ],
)
def test_what_says_one_cluster_or_none(
    address: str | None, environment: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not refusals(address, environment, monkeypatch)


@pytest.mark.parametrize(
    ("address", "environment", "told"),
    [
        (None, "head:6379", "RAY_ADDRESS=head:6379\n  reason: the environment names a Ray cluster"),
        (None, "auto", "give ray.address=auto to join it, or unset RAY_ADDRESS"),
        ("ray://head:10001", None, "ray.address=ray://head:10001\n  reason: Ray Client"),
        ("ray://head:10001", None, "ray start --address=HOST:6379 --num-cpus=0"),
        ("http://head:8265", None, "ray job submit --address=URL -- rlpost"),
        (
            "auto",
            "https://head:8265",
            "RAY_ADDRESS=https://head:8265\n  reason: it is the address of Ray's job server",
        ),
        ("auto", "ray://head:10001", "RAY_ADDRESS=ray://head:10001\n  reason: Ray Client"),
        ("auto", "head", "RAY_ADDRESS=head\n  reason: not an address\n  remedy: give host:port, or unset it"),
        ("local", None, "ray.address=local\n  reason: not an address"),
        ("redis://head:6379", None, "not an address"),
    ],
)
def test_what_is_refused_with_the_way_that_works(
    address: str | None, environment: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told in refusals(address, environment, monkeypatch)


def test_what_opens_no_ray_may_be_where_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in Task:
        told = refusals(None, "head:6379", monkeypatch, task=task)
        assert bool(told) == (task not in (Task.dry_run, Task.tiny_base)), task
