from __future__ import annotations

import pytest

from mlx_router.errors import Forbidden, Unauthorized
from mlx_router.specialist.security import bearer, check_admin, check_client, is_loopback, matches


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "localhost", None])
def test_loopback(host: str | None) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::2", "::ffff:10.0.0.1", "example.org", "localhost.example.org", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


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
