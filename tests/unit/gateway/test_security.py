"""Keys, the admin token, other sites' pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_router.config import parse_config
from mlx_router.errors import ConfigError, Forbidden, Unauthorized
from mlx_router.gateway.security import Guard


def guard(**raw: Any) -> Guard:
    return Guard(parse_config(raw, home=Path("/nowhere")))


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def test_without_keys_everybody_on_this_machine_may_ask() -> None:
    guard().check([], "POST")


def test_keys_from_configuration_and_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfrom-file\n\n")
    guarded = guard(security={"api_keys": ["first"], "api_keys_file": str(keys), "admin_token": "root"})
    for key in ("first", "from-file", "root"):
        guarded.check(bearer(key), "GET")
    guarded.check([(b"x-api-key", b"first")], "POST")
    for headers in ([], bearer("wrong"), bearer(""), [(b"authorization", b"first")]):
        with pytest.raises(Unauthorized):
            guarded.check(headers, "GET")


def test_a_missing_key_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api_keys_file"):
        guard(security={"api_keys_file": str(tmp_path / "none")})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "mac.local"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        guard(gateway={"host": host}).check_bind()
    guard(gateway={"host": host}, security={"api_keys": ["k"]}).check_bind()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_keys_the_host_must_be_this_machine(method: str) -> None:
    rebound = [(b"host", b"rebound.example:9300"), (b"origin", b"http://rebound.example:9300")]
    with pytest.raises(Forbidden, match="Host"):
        guard().check(rebound, method)
    for host in (b"localhost:9300", b"127.0.0.1", b"[::1]:9300"):
        guard().check([(b"host", host)], method)
    guard(security={"api_keys": ["k"]}).check([(b"host", b"ai.example"), *bearer("k")], method)


def test_pages_of_other_sites_may_not_act() -> None:
    headers = [(b"host", b"127.0.0.1:9300"), (b"origin", b"https://evil.example")]
    with pytest.raises(Forbidden):
        guard().check(headers, "POST")
    guard(gateway={"cors_origins": ["https://evil.example"]}).check(headers, "POST")
    guard().check([(b"host", b"127.0.0.1:9300"), (b"origin", b"http://127.0.0.1:9300")], "POST")
    guard().check(headers, "GET")


def test_the_admin_token() -> None:
    guarded = guard(security={"admin_token": "root"})
    guarded.check_admin(bearer("root"), "10.0.0.1")
    guarded.check_admin([(b"x-admin-token", b"root")], "10.0.0.1")
    for headers in ([], bearer("wrong"), [(b"x-admin-token", b"")]):
        with pytest.raises(Unauthorized):
            guarded.check_admin(headers, "127.0.0.1")


def test_without_a_token_only_this_machine_administers() -> None:
    here = [(b"host", b"localhost:9300")]
    guard().check_admin(here, "127.0.0.1")
    for headers, peer in (
        (here, "10.0.0.1"),
        (here, None),
        ([(b"host", b"evil.example")], "127.0.0.1"),
        ([], "127.0.0.1"),
    ):
        with pytest.raises(Forbidden):
            guard().check_admin(headers, peer)
