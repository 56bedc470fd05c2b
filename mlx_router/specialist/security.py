"""Who may ask: loopback clients always, others with an API key; operators with the admin token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence

from mlx_router.errors import Forbidden, Unauthorized

LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "testserver"})


def is_loopback(host: str | None) -> bool:
    """Whether an address is this machine's own; a Unix socket, which has none, is."""
    if host is None:
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host in LOCAL_NAMES
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def matches(token: str | None, accepted: Sequence[str]) -> bool:
    """Whether the token is one of those accepted, in a time that does not depend on which, or how nearly."""
    given = (token or "").encode()
    results = [hmac.compare_digest(given, key.encode()) for key in accepted if key]
    return any(results)


def check_client(client: str | None, headers: Mapping[str, str], *, api_keys: Sequence[str], admin_token: str) -> None:
    """Raises Unauthorized or Forbidden for a client that may not use this server at all."""
    if is_loopback(client):
        return
    if not api_keys and not admin_token:
        raise Forbidden("without API keys only loopback clients are served")
    if not matches(bearer(headers), [*api_keys, admin_token]):
        raise Unauthorized("a valid API key is needed: Authorization: Bearer …")


def check_admin(client: str | None, headers: Mapping[str, str], *, admin_token: str) -> None:
    """Raises Unauthorized or Forbidden for a client that may not change adapters.

    Without a token a web page must not be able to act through its visitor's browser: the Host must be local, and
    so must be the Origin where there is one.
    """
    if admin_token:
        if not matches(bearer(headers), [admin_token]):
            raise Unauthorized("the admin token is needed: Authorization: Bearer …")
        return
    if not is_loopback(client):
        raise Forbidden("no admin token is set, so only loopback clients may change adapters")
    for name in ("host", "origin"):
        value = headers.get(name)
        if value and not is_loopback(_host_of(value)):
            raise Forbidden(f"no admin token is set, and {name} {value[:100]!r} is not this machine")


def _host_of(value: str) -> str:
    """`http://[::1]:9360` and `localhost:9360` -> the host alone."""
    authority = value.partition("://")[2] if "://" in value else value
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]
