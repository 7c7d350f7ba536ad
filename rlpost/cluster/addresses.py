"""The address of a Ray cluster: `host:port`, with an IPv6 host in brackets."""

from __future__ import annotations

import ipaddress
import re

_FORM = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})")


def host_and_port(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port. Raises ValueError if the address has another form."""
    found = _FORM.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise ValueError(f"{address!r} is not host:port, nor [IPv6]:port")
    if found["v6"] is not None:
        ipaddress.IPv6Address(found["v6"])  # raises ValueError
    return found["v6"] or found["name"], int(found["port"])
