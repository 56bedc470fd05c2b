"""Names and addresses of this machine, as peers and as the Host of a request."""

from __future__ import annotations

import pytest

from mlx_router.errors import Forbidden
from mlx_router.protocol.local import check_host, host_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "::1%lo", "::ffff:127.0.0.1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "0.0.0.0", "::2", "::ffff:10.0.0.1", "example.org", "localhost.example.org", ""]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_host_alone() -> None:
    assert host_of("http://[::1]:9360") == "::1"
    assert host_of("LocalHost:9360") == "localhost"
    assert host_of("127.0.0.1") == "127.0.0.1"
    for odd in ("[::1", "[::1]x", "a@localhost:1@b", "localhost:x", "localhost:1:2", ""):
        assert not is_loopback(host_of(odd)), odd


@pytest.mark.parametrize("value", [None, "localhost", "localhost:9300", "127.0.0.2:1", "[::1]:9300", "Mac.local:9300"])
def test_a_host_that_is_served(value: str | None) -> None:
    check_host(value, bind="mac.local")


@pytest.mark.parametrize("value", ["rebound.example:9300", "localhost.rebound.example", "10.0.0.1", "[::2]", "[", ""])
def test_a_host_that_is_refused(value: str) -> None:
    with pytest.raises(Forbidden, match="Host"):
        check_host(value)
