"""Addresses of Ray clusters: names, IPv4 and IPv6, there and back."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.cluster.addresses import host_and_port

PORTS = st.integers(1, 65535)


@given(host=st.ip_addresses(), port=PORTS)
def test_every_ip_address_and_port_reads_back(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    written = f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
    assert host_and_port(written) == (str(host), port)


@pytest.mark.parametrize("host", ["head", "ray-head.example.com", "my_host"])
def test_names(host: str) -> None:
    assert host_and_port(f"{host}:6379") == (host, 6379)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "head",
            "head:",
            ":6379",
            "head:0",
            "head:65536",
            "head:6379 ",
            "head:\u0666",
            "ray://head:6379",
        ),
        *("::1:6379", "[::1]", "[::1]6379", "[head]:6379", "[1.2.3.4]:6379", "[::1:6379", "[::g]:1", "[]:1"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        host_and_port(address)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = host_and_port(text)
    except ValueError:
        return
    before, _, after = text.rpartition(":")
    assert (before.strip("[]"), after.lstrip("0")) == (host, str(port))
