"""Keys, limits and impatience: what the gateway does not put up with."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway_rig import Rig, start_rig
from tests.waiting import wait_until

KEY = {"authorization": "Bearer key-1"}
LIMITS = """
header_limit_bytes = 4096
client_timeout_s = 0.8
max_connections = 30
max_requests = 2
cors_origins = ["https://app.example"]
"""
SECURITY = '[security]\napi_keys = ["key-1", "key-2"]\nadmin_token = "root"'


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    running = start_rig(tmp_path_factory.mktemp("limits"), gateway=LIMITS, extra=SECURITY)
    yield running
    running.stop()


def events(rig: Rig, name: str) -> float:
    for line in rig.get("/metrics", headers=KEY).body.decode().splitlines():
        if line.startswith(f'mlx_router_events_total{{event="{name}"}}'):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def connect(rig: Rig) -> socket.socket:
    return socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("path", ["/v1/models", "/v1/status", "/v1/decisions", "/metrics", "/openapi.json"])
def test_everything_but_health_needs_a_key(rig: Rig, path: str) -> None:
    reply = rig.get(path)
    assert reply.status == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert rig.get(path, headers=KEY).status == 200
    assert rig.get(path, headers={"x-api-key": "key-2"}).status == 200


def test_chat_needs_a_key_and_the_specialist_gets_ours(rig: Rig) -> None:
    assert rig.chat().status == 401
    assert rig.chat(headers={"authorization": "Bearer nope"}).status == 401
    assert rig.chat(headers={"x-api-key": "key-2"}).status == 200
    seen = rig.specialists["hardware"].control()["seen"][-1]
    assert seen["headers"]["authorization"] == "Bearer key-1"
    assert "x-api-key" not in seen["headers"]
    assert rig.get("/health").status == 200
    assert rig.get("/ready").status == 200


def test_administration_needs_the_token(rig: Rig) -> None:
    body = {"lora_name": "mascarade-sql", "lora_path": "x", "load_inplace": True}
    assert rig.post("/v1/load_lora_adapter", body, headers=KEY).status == 401
    assert rig.post("/v1/router/rollback", {}, headers=KEY).status == 401
    assert rig.post("/v1/load_lora_adapter", body, headers={**KEY, "x-admin-token": "root"}).status == 200
    assert rig.post("/v1/load_lora_adapter", body, headers={"authorization": "Bearer root"}).status == 200
    seen = [item for item in rig.specialists["code"].control()["seen"] if item["path"] == "/v1/load_lora_adapter"]
    assert {item["headers"]["Authorization"] for item in seen} == {"Bearer root"}


def test_pages_of_other_sites_are_refused_unless_they_are_named(rig: Rig) -> None:
    assert rig.chat(headers={**KEY, "origin": "https://evil.example"}).status == 403
    reply = rig.chat(headers={**KEY, "origin": "https://app.example"})
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://app.example"


def test_long_headers_are_refused(rig: Rig) -> None:
    with connect(rig) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 5000 + b"\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 431")
    with connect(rig) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        wait_until(lambda: sent(client, b"x-more: " + b"a" * 500 + b"\r\n") is False, "the end of patience")
    assert events(rig, "headers_too_large") == 2


@pytest.mark.parametrize("piece", [b"x-more: " + b"a" * 500 + b"\r\n", b"a" * 500], ids=["many", "one"])
def test_endless_trailers_are_cut(rig: Rig, piece: bytes) -> None:
    before, slow = events(rig, "headers_too_large"), events(rig, "slow_client")
    with connect(rig) as client:
        client.sendall(b"POST /v1/route HTTP/1.1\r\nhost: x\r\nx-api-key: key-1\r\ntransfer-encoding: chunked\r\n\r\n")
        client.sendall(b"2\r\n{}\r\n0\r\nx-first: ")
        wait_until(lambda: sent(client, piece) is False, "the end of patience")
    assert (events(rig, "headers_too_large"), events(rig, "slow_client")) == (before + 1, slow)


def test_trailers_within_the_limit_are_read(rig: Rig) -> None:
    with connect(rig) as client:
        client.sendall(b"POST /v1/route HTTP/1.1\r\nhost: x\r\nx-api-key: key-1\r\nconnection: close\r\n")
        client.sendall(b'transfer-encoding: chunked\r\n\r\n10\r\n{"prompt":"rust"\r\n1\r\n}\r\n0\r\nx-sum: 1\r\n\r\n')
        assert b'"domain":"rust"' in read_all(client)


def sent(client: socket.socket, data: bytes) -> bool:
    try:
        client.sendall(data)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost:",
        b"POST /v1/route HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ],
)
def test_slow_senders_are_cut(rig: Rig, beginning: bytes) -> None:
    before = events(rig, "slow_client")
    with connect(rig) as client:
        client.sendall(beginning)
        started = time.monotonic()
        answer = read_all(client)
        assert time.monotonic() - started < 8
    assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 401"))
    assert events(rig, "slow_client") == before + 1


def test_a_line_break_does_not_hold_a_connection(rig: Rig) -> None:
    before = events(rig, "slow_client")
    with connect(rig) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        read_all(client)
    assert events(rig, "slow_client") == before + 1


def test_slow_readers_are_cut(rig: Rig) -> None:
    before = events(rig, "slow_client")
    body = json.dumps({"model": "base", "messages": [{"role": "user", "content": "x"}], "x_test": {"size": 40_000_000}})
    with connect(rig) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: key-1\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body.encode())
        wait_until(lambda: events(rig, "slow_client") == before + 1, "the cut")
        assert len(read_all(client)) < 40_000_000
    wait_until(lambda: rig.get("/v1/status", headers=KEY).json()["gateway"]["active"] == 0, "nothing left")


def test_too_many_connections_are_told_so(rig: Rig) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(rig)) for _ in range(40)]
        answers = []
        for client in clients[35:]:
            answers.append(read_all(client))
        assert any(answer.startswith(b"HTTP/1.1 503") and b'"overloaded"' in answer for answer in answers)
    wait_until(lambda: rig.get("/health").status == 200, "places again")


def test_too_many_requests_are_told_to_come_back(rig: Rig) -> None:
    hold = {"hold": "busy"}
    code = rig.specialists["code"]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(rig.chat, "sql", headers=KEY, x_test=hold) for _ in range(2)]
        wait_until(lambda: code.control()["running"] == 2, "two running")
        reply = rig.chat("sql", headers=KEY)
        assert (reply.status, reply.json()["error"]["code"]) == (429, "overloaded")
        assert reply.headers["retry-after"] == "1"
        assert rig.post("/v1/route", {"prompt": "sql"}, headers=KEY).status == 429
        assert rig.post("/v1/embeddings", {"model": "minilm", "input": "a"}, headers=KEY).status == 429
        code.control(release="busy")
        assert [future.result().status for future in waiting] == [200, 200]


def test_a_client_that_leaves_takes_its_embeddings_along(rig: Rig, tmp_path: Path) -> None:
    def queue() -> int:
        return int(rig.get("/v1/status", headers=KEY).json()["router"]["queue"])

    body = json.dumps({"model": "minilm", "input": [f"until {tmp_path / 'there'}"]}).encode()
    with connect(rig) as client:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nx-api-key: key-1\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        wait_until(lambda: queue() == 1, "the text at the encoder")
    wait_until(lambda: queue() == 0, "its place free")
    (tmp_path / "there").touch()
    assert rig.get("/v1/status", headers=KEY).json()["gateway"]["active"] == 0
    assert "Traceback" not in rig.gateway.log.read_text()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/route HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/route HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_refused(rig: Rig, data: bytes) -> None:
    with connect(rig) as client:
        client.sendall(data)
        answer = read_all(client)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 408"))
    assert rig.get("/health").status == 200
