"""The address of a Ray cluster: `host:port`, with an IPv6 host in brackets."""

from __future__ import annotations

import ipaddress
import os
import re

ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's environment variable. `ray job submit` sets it for what it runs.

_FORM = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})")


def host_and_port(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port. Raises ValueError if the address has another form."""
    found = _FORM.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise ValueError(f"{address!r} is not host:port, nor [IPv6]:port")
    if found["v6"] is not None:
        ipaddress.IPv6Address(found["v6"])  # raises ValueError
    return found["v6"] or found["name"], int(found["port"])


def form_of(address: str) -> str | None:
    """`ray` for an address of Ray Client, `http` for one of the job server; None for others."""
    scheme, separator, _ = address.partition("://")
    return {"ray": "ray", "http": "http", "https": "http"}.get(scheme) if separator else None


def named_by_environment(address: str) -> str:
    """`address`; if that is `auto`, the one in RAY_ADDRESS, as Ray reads it, or `auto` if there is none."""
    return (os.environ.get(ADDRESS_VARIABLE) or address) if address == "auto" else address
