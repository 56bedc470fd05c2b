"""Who may ask: loopback clients under a local Host, all others with an API key; operators with the admin token."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from mlx_router.errors import Forbidden, Unauthorized
from mlx_router.protocol.local import check_host, host_of, is_loopback


def is_local(client: str | None) -> bool:
    """Whether a peer is on this machine; one on a Unix socket, which has no address, is."""
    return client is None or is_loopback(client)


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def matches(token: str | None, accepted: Sequence[str]) -> bool:
    """Whether the token is one of those accepted, in a time that does not depend on which, or how nearly."""
    given = (token or "").encode()
    results = [hmac.compare_digest(given, key.encode()) for key in accepted if key]
    return any(results)


def check_client(
    client: str | None, headers: Mapping[str, str], *, api_keys: Sequence[str], admin_token: str, bind: str = ""
) -> None:
    """Raises Unauthorized or Forbidden for a client that may not use this server at all.

    One on this machine needs no key, but without one its Host must be local or `bind`, where we listen.
    """
    if matches(bearer(headers), [*api_keys, admin_token]):
        return
    if is_local(client):
        check_host(headers.get("host"), bind)
        return
    if not api_keys and not admin_token:
        raise Forbidden("without API keys only loopback clients are served")
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
    if not is_local(client):
        raise Forbidden("no admin token is set, so only loopback clients may change adapters")
    check_host(headers.get("host"))
    origin = headers.get("origin")
    if origin and not is_loopback(host_of(origin)):
        raise Forbidden(f"no admin token is set, and the Origin {origin[:100]!r} is not this machine")
