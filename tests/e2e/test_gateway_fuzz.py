"""Whatever is sent, the gateway answers with something that it states, and lives on."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway_rig import Rig, start_rig

CALM = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/route"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/status"),
    ("GET", "/v1/decisions"),
    ("GET", "/v1/adapters"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/pin_lora_adapter"),
    ("POST", "/v1/router/activate"),
    ("POST", "/v1/router/rollback"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    running = start_rig(tmp_path_factory.mktemp("fuzz"), gateway="client_timeout_s = 1.0\nbody_limit_bytes = 100000")
    yield running
    assert running.gateway.child is not None
    assert running.gateway.child.poll() is None, "the gateway has died"
    assert "Traceback" not in running.gateway.log.read_text()
    running.stop()


@pytest.fixture(scope="module")
def schema(rig: Rig) -> Any:
    return schemathesis.openapi.from_url(f"{rig.gateway.url}/openapi.json")


def test_every_operation_is_fuzzed(schema: Any) -> None:
    found = {(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_schemathesis(rig: Rig, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    stated = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()}
    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.body or operation.query:
        modes.append(schemathesis.GenerationMode.NEGATIVE)

    for mode in modes:

        @settings(CALM, max_examples=20)
        @given(case=operation.as_strategy(generation_mode=mode), automatic=st.booleans())
        def holds(case: Any, automatic: bool) -> None:
            if automatic and isinstance(case.body, dict) and "messages" in case.body:
                case.body["model"] = "auto"
            response = case.call(timeout=20)
            status = response.status_code
            assert status < 500 or status in stated, (status, response.text)
            if status >= 400 and path != "/ready":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert str(rig.home) not in response.text
            assert "x-request-id" in response.headers

        holds()


def exchange(rig: Rig, data: bytes) -> bytes:
    """Send bytes, close our side, read what comes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10) as client:
        try:
            client.sendall(data)
            while piece := client.recv(65536):
                answer += piece
                if is_whole(answer):
                    break
        except ConnectionError:
            pass
    return answer


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    at = head.lower().find(b"content-length:")
    return bool(separator) and at >= 0 and len(body) >= int(head[at + 15 :].split(b"\r\n", 1)[0])


def post(path: str, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: localhost", b"content-length: %d" % len(body)]
    lines += [name + b": " + value for name, value in headers or []]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CHAT = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["auto", "base", "sql", "mascarade-sql", "nope", "", None, 3]) | JSON,
        "messages": st.lists(
            st.fixed_dictionaries(
                {}, optional={"role": st.sampled_from(["user", "system", "tool"]) | JSON, "content": JSON}
            )
            | JSON,
            max_size=4,
        )
        | JSON,
        "stream": st.booleans() | JSON,
        "tools": JSON,
        "prompt_cache_key": JSON,
        "prompt": JSON,
        "input": JSON,
    },
)


@settings(CALM, max_examples=150)
@given(path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/embeddings"]), body=CHAT)
def test_bodies_that_look_right(rig: Rig, path: str, body: Any) -> None:
    answer = exchange(rig, post(path, json.dumps(body).encode(), [(b"connection", b"close")]))
    assert answer.split(b" ", 2)[1] in (b"200", b"400", b"404"), answer[:300]


@settings(CALM, max_examples=60)
@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), cut=st.integers(0, 3))
def test_bodies_of_any_bytes(rig: Rig, body: bytes, cut: int) -> None:
    answer = exchange(rig, post("/v1/chat/completions", body, [(b"connection", b"close")]))
    assert answer.startswith(b"HTTP/1.1 400"), answer[:300]


NAMES = st.sampled_from(
    [b"x-request-id", b"authorization", b"origin", b"accept", b"content-type", b"traceparent", b"x-conversation-id"]
) | st.binary(min_size=1, max_size=10)


@settings(CALM, max_examples=100)
@given(headers=st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=4))
def test_headers_of_any_bytes(rig: Rig, headers: list[tuple[bytes, bytes]]) -> None:
    body = b'{"model":"auto","messages":[{"role":"user","content":"sql"}]}'
    answer = exchange(rig, post("/v1/chat/completions", body, [*headers, (b"connection", b"close")]))
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"200", b"400", b"403", b"408", b"431"), answer[:300]


@settings(CALM, max_examples=40)
@given(data=st.binary(max_size=300))
def test_any_bytes_at_all(rig: Rig, data: bytes) -> None:
    answer = exchange(rig, data + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:300]


PIECES = st.sampled_from(
    [b"data: {}\n\n", b"data: x\r\n\r\n", b"\n", b"\r", b": ping\n\n", b"data: ", b"[DONE]", b"\xff", b"\r\r"]
)


@settings(CALM, max_examples=80)
@given(pieces=st.lists(PIECES, min_size=1, max_size=12), cut=st.integers(1, 9))
def test_streams_of_any_framing_come_through_unchanged(rig: Rig, pieces: list[bytes], cut: int) -> None:
    raw = b"".join(pieces)
    test = {"raw": base64.b64encode(raw).decode(), "cut": cut}
    assert rig.chat("sql", stream=True, x_test=test).body == raw
