"""Who may ask: API keys, the admin token, and pages of other sites that try their luck with a loopback server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from mlx_router.config import Config, read_api_keys
from mlx_router.errors import ConfigError, Forbidden, Unauthorized
from mlx_router.protocol.local import check_host, is_loopback

PUBLIC = frozenset({"/health", "/ready"})  # and the page's own files, which hold no data


class Guard:
    """Checks a request's headers. Digests are compared, all of them, in constant time."""

    def __init__(self, config: Config) -> None:
        keys = read_api_keys(config.security)
        self.credential = next(iter([*keys, config.security.admin_token]), "")  # for our specialists, if any
        self._keys = tuple(_digest(key) for key in keys if key)
        self._admin = _digest(config.security.admin_token) if config.security.admin_token else b""
        self._origins = frozenset(config.gateway.cors_origins)
        self._loopback = is_loopback(config.gateway.host)
        self._host = config.gateway.host

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self._keys)

    def check_bind(self) -> None:
        """Raises ConfigError for a server that anybody on the network could use."""
        if not self._loopback and not self._keys:
            raise ConfigError(
                f"gateway.host = {self._host!r} is reachable from other machines: set security.api_keys or"
                " security.api_keys_file first"
            )

    def check(self, headers: Iterable[tuple[bytes, bytes]], method: str) -> None:
        """Raises Unauthorized or Forbidden. Without keys the Host must name this machine."""
        found = _pick(headers)
        if not self._keys:
            host = found.get(b"host")
            check_host(None if host is None else host.decode("latin-1"), self._host)
        if method not in ("GET", "HEAD"):
            self._check_origin(found)
        if self._keys and not self._known(_credential(found)):
            raise Unauthorized("the API key is missing or wrong")

    def check_admin(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> None:
        """Raises Unauthorized or Forbidden. Without a token only this machine may administer it."""
        found = _pick(headers)
        self._check_origin(found)
        if self._admin:
            token = found.get(b"x-admin-token", b"") or _credential(found)
            if not hmac.compare_digest(_digest(token), self._admin):
                raise Unauthorized("the admin token is missing or wrong")
            return
        if peer is None or not is_loopback(peer):
            raise Forbidden("set security.admin_token to administer the router from elsewhere")
        check_host(found.get(b"host", b"").decode("latin-1"))

    def _known(self, credential: bytes) -> bool:
        digest = _digest(credential)
        known = False
        for key in (*self._keys, self._admin):
            known |= hmac.compare_digest(digest, key)
        return known

    def _check_origin(self, found: Mapping[bytes, bytes]) -> None:
        """A browser tells where a page comes from; only our own page and configured ones may act."""
        origin = found.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self._origins:
            return
        if origin.partition("://")[2] != found.get(b"host", b"").decode("latin-1"):
            raise Forbidden("requests from pages of other sites are not served")


_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-admin-token", b"origin", b"host"})


def _pick(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {name: value for name, value in headers if name in _HEADERS}


def _credential(found: Mapping[bytes, bytes]) -> bytes:
    scheme, _, value = found.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and value:
        return value.strip()
    return found.get(b"x-api-key", b"")


def _digest(value: str | bytes) -> bytes:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()
