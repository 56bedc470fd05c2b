"""What counts as this machine: peers, and the Host by which a request names its server.

A web page whose name is made to point at 127.0.0.1 (DNS rebinding) is of the same origin as a server here, but its
browser still sends that name as Host. A server without keys therefore answers to its own names only.
"""

from __future__ import annotations

import ipaddress
import re

from mlx_router.errors import Forbidden

_AUTHORITY = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::\d*)?")

_USUAL = frozenset({"localhost", "127.0.0.1", "::1"})  # parsing an address costs more than the rest of the check


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine only."""
    if host in _USUAL:
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def host_of(value: str) -> str:
    """`http://[::1]:9360` and `localhost:9360` -> the host alone; empty where there is none."""
    found = _AUTHORITY.fullmatch(value.rpartition("://")[2].strip().lower())
    return (found[1] or found[2] or "") if found is not None else ""


def check_host(value: str | None, bind: str = "") -> None:
    """Raises Forbidden for a Host that is neither loopback nor `bind`, where the server listens.

    None, a request without Host, passes: no browser sends one.
    """
    if value is None:
        return
    host = host_of(value)
    if not is_loopback(host) and not (host and host == bind.strip("[]").lower()):
        raise Forbidden(f"without a key or token the Host must name this machine, and {value[:100]!r} does not")
