from __future__ import annotations

import pytest

from mlx_router.errors import Forbidden, Unauthorized
from mlx_router.specialist.security import bearer, check_admin, check_client, matches


def test_tokens() -> None:
    assert bearer({"authorization": "Bearer abc"}) == "abc"
    assert bearer({"authorization": "bearer  abc "}) == "abc"
    assert bearer({"authorization": "Basic abc"}) is None
    assert bearer({}) is None
    assert matches("abc", ["x", "abc"])
    assert not matches("", [""])  # an empty key is no key
    assert not matches(None, [])
    assert not matches("é", ["e"])


def test_strangers_need_a_key() -> None:
    check_client("127.0.0.1", {}, api_keys=(), admin_token="")
    with pytest.raises(Forbidden):
        check_client("10.0.0.1", {}, api_keys=(), admin_token="")
    with pytest.raises(Unauthorized):
        check_client("10.0.0.1", {"authorization": "Bearer no"}, api_keys=("k",), admin_token="")
    check_client("10.0.0.1", {"authorization": "Bearer k"}, api_keys=("k",), admin_token="")


@pytest.mark.parametrize("client", ["127.0.0.1", None])
def test_a_rebound_name_needs_a_key(client: str | None) -> None:
    host = {"host": "rebound.example.org:9360"}
    for api_keys in ((), ("k",)):
        with pytest.raises(Forbidden, match="Host"):
            check_client(client, host, api_keys=api_keys, admin_token="")
        check_client(client, {"host": "localhost:9360"}, api_keys=api_keys, admin_token="")
    check_client(client, {"host": "mac.local:9360"}, api_keys=(), admin_token="", bind="mac.local")
    check_client(client, {**host, "authorization": "Bearer k"}, api_keys=("k",), admin_token="")


def test_operators() -> None:
    check_admin("127.0.0.1", {"host": "localhost:9360"}, admin_token="")
    check_admin("127.0.0.1", {"host": "[::1]:9360", "origin": "http://127.0.0.1:9300"}, admin_token="")
    for client, headers in (
        ("10.0.0.1", {}),
        ("127.0.0.1", {"host": "rebound.example.org:9360"}),
        ("127.0.0.1", {"host": "localhost", "origin": "https://example.org"}),
        ("127.0.0.1", {"host": "localhost", "origin": "null"}),
    ):
        with pytest.raises(Forbidden):
            check_admin(client, headers, admin_token="")
    with pytest.raises(Unauthorized):
        check_admin("127.0.0.1", {}, admin_token="t")
    check_admin("10.0.0.1", {"authorization": "Bearer t", "host": "anything"}, admin_token="t")
