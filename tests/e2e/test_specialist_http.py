"""HTTP as such: limits, refusals, disconnects, queue, drain; raw requests against real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_router.protocol.sse import SSEReader
from tests import tiny_chat
from tests.gateway_rig import free_port
from tests.serve_rig import ended
from tests.specialist_process import SpecialistProcess, specialist_process, wait_until_ready, write_config
from tests.waiting import wait_until

HI = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"model": "endless", "messages": HI, "max_tokens": 1900}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("http")
    tiny_chat.save_scripted(root / "base")
    for name, first in {"endless": "loop", "thinker": "<think>", "caller": "<tool_call>"}.items():
        tiny_chat.save_starter(root / name, first)
    return root


@pytest.fixture(scope="module")
def small(root: Path) -> Iterator[SpecialistProcess]:
    """One row at a time, one in the queue, two slots, small bodies."""
    top = f'adapter_roots = ["{root}"]\n[gateway]\nbody_limit_bytes = 20000\n'
    with specialist_process(root / "home", root / "base", top=top, slots=2, max_batch=1, queue_limit=1) as running:
        running.load("endless", root / "endless")
        yield running


@contextlib.contextmanager
def open_stream(running: SpecialistProcess, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """Start a stream and read its first bytes; leaving the block closes the connection."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", CHAT, json.dumps({**body, "stream": True}), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.read(20)
    try:
        yield response
    finally:
        response.close()
        connection.close()


def assert_envelope(body: Any, code: str | None = None) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    if code is not None:
        assert body["error"]["code"] == code


def test_errors_have_one_shape(small: SpecialistProcess) -> None:
    status, body = small.get("/nowhere")
    assert status == 404
    assert_envelope(body, "not_found")
    status, body = small.get(CHAT)
    assert status == 405
    assert_envelope(body, "method_not_allowed")
    for raw in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": "base", "messages": [{"role": "u\\ud800"}]}'):
        status, body = small.request("POST", CHAT, raw)
        assert status == 400, raw
        assert_envelope(body, "invalid_request")
    status, body = small.post(CHAT, {"model": "base", "messages": []})
    assert status == 400
    assert body["error"]["param"] == "messages"
    status, body = small.post(CHAT, {"model": "base", "messages": HI, "padding": "x" * 30000})
    assert status == 413
    assert_envelope(body, "body_too_large")


def test_a_body_without_length_is_limited_too(small: SpecialistProcess) -> None:
    host, _, port = small.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        raw.sendall(b"4e20\r\n" + b"x" * 0x4E20 + b"\r\n4e20\r\n" + b"x" * 0x4E20 + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_offers_h2c_is_answered(small: SpecialistProcess) -> None:
    host, _, port = small.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": "base", "messages": HI}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
        f"http2-settings: AAEAAEAAAAIAAAAB\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        for packet in (head.encode(), body):
            raw.sendall(packet)
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")


def test_openapi_describes_the_bodies(small: SpecialistProcess) -> None:
    status, document = small.get("/openapi.json")
    assert status == 200
    schemas = document["components"]["schemas"]
    assert {"ChatRequest", "CompletionRequest", "LoadAdapterRequest", "Message", "ErrorEnvelope"} <= set(schemas)


def test_metrics(small: SpecialistProcess) -> None:
    small.post(CHAT, {"model": "base", "messages": HI})
    status, text = small.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["mlx_router_specialist_jobs_finished_total"]) >= 1
    assert float(values['mlx_router_specialist_requests_total{adapter="base",status="200"}']) >= 1
    assert float(values["mlx_router_specialist_bank_slots"]) == 3
    assert float(values["mlx_router_specialist_memory_bytes"]) > 1e6


def test_a_full_queue_says_when_to_come_back(small: SpecialistProcess) -> None:
    host, _, port = small.url.removeprefix("http://").partition(":")
    waiting = http.client.HTTPConnection(host, int(port), timeout=30)
    refused = http.client.HTTPConnection(host, int(port), timeout=30)
    with contextlib.closing(waiting), contextlib.closing(refused):
        with open_stream(small, LONG):
            waiting.request("POST", CHAT, json.dumps({"model": "base", "messages": HI}))
            small.wait("/ready", lambda status, body: body["queue"]["waiting"] == 1)
            refused.request("POST", CHAT, json.dumps({"model": "base", "messages": HI}))
            response = refused.getresponse()
            assert response.status == 429
            assert int(response.headers["retry-after"]) >= 1
            assert_envelope(json.loads(response.read()), "overloaded")
        answer = waiting.getresponse()
        assert answer.status == 200
        answer.read()


def test_a_client_that_leaves_frees_its_place(small: SpecialistProcess) -> None:
    """Streaming or not: the only row of the batch goes on long for nobody, unless the server notices."""
    with open_stream(small, LONG):
        small.wait("/ready", lambda status, body: body["queue"]["running"] == 1)
    small.wait("/ready", lambda status, body: body["queue"]["running"] == 0)
    host, _, port = small.url.removeprefix("http://").partition(":")
    plain = http.client.HTTPConnection(host, int(port), timeout=30)
    plain.request("POST", CHAT, json.dumps(LONG))
    small.wait("/ready", lambda status, body: body["queue"]["running"] == 1)
    plain.close()
    small.wait("/ready", lambda status, body: body["queue"]["running"] == 0)
    text = small.get("/metrics")[1]
    cancelled = next(line for line in text.splitlines() if line.startswith("mlx_router_specialist_jobs_cancelled"))
    assert float(cancelled.split()[1]) >= 2


def test_an_evicted_adapter_comes_back_on_demand(small: SpecialistProcess, root: Path) -> None:
    small.load("thinker", root / "thinker")
    small.load("caller", root / "caller")
    states = {item["id"]: item["state"] for item in small.get("/v1/adapters")[1]["data"]}
    assert sorted(states.values()) == ["available", "resident", "resident"]
    for name in ("endless", "thinker", "caller", "endless"):
        status, body = small.post(CHAT, {"model": name, "messages": HI, "max_tokens": 8})
        assert status == 200, body
    answer = small.post(CHAT, {"model": "thinker", "messages": HI})[1]
    assert answer["choices"][0]["message"]["content"] == "ok"


def test_files_that_went_bad_take_no_traffic(small: SpecialistProcess, root: Path) -> None:
    small.load("thinker", root / "thinker", replace=True)
    small.load("caller", root / "caller", replace=True)
    folder = tiny_chat.save_starter(root / "rots", "<think>")
    small.load("rots", folder)
    weights = (folder / "adapters.safetensors").read_bytes()
    (folder / "adapters.safetensors").write_bytes(weights[:-4] + b"\xff\xff\xff\x7f")
    for name in ("endless", "caller", "thinker"):  # it is evicted
        assert small.post(CHAT, {"model": name, "messages": HI, "max_tokens": 2})[0] == 200
    status, body = small.post(CHAT, {"model": "rots", "messages": HI})
    assert status == 409, body
    assert_envelope(body, "adapter_quarantined")
    assert str(root) not in body["error"]["message"]
    entry = next(item for item in small.get("/v1/adapters")[1]["data"] if item["id"] == "rots")
    assert entry["state"] == "quarantined"
    assert "NaN" in entry["reason"] or "sha256" in entry["reason"]
    status, body = small.post(CHAT, {"model": "rots", "messages": HI})
    assert status == 409, body
    assert str(root) not in body["error"]["message"]
    (folder / "adapters.safetensors").write_bytes(weights)
    small.load("rots", folder)
    assert small.post(CHAT, {"model": "rots", "messages": HI})[1]["choices"][0]["message"]["content"] == "ok"
    small.post("/v1/unload_lora_adapter", {"lora_name": "rots"})


def test_unload_and_pin(small: SpecialistProcess, root: Path) -> None:
    small.load("passing", root / "thinker")
    assert small.post("/v1/load_lora_adapter", {"lora_name": "passing", "lora_path": str(root / "caller")})[0] == 409
    status, body = small.post("/v1/pin_lora_adapter", {"lora_name": "passing", "pinned": True})
    assert (status, body) == (200, {"lora_name": "passing", "pinned": True})
    entry = next(item for item in small.get("/v1/adapters")[1]["data"] if item["id"] == "passing")
    assert entry["pinned"]
    status, body = small.post("/v1/unload_lora_adapter", {"lora_name": "passing"})
    assert status == 200
    assert body["digest"] == entry["digest"]
    status, body = small.post(CHAT, {"model": "passing", "messages": HI})
    assert status == 404
    assert_envelope(body, "model_not_found")
    assert small.post("/v1/unload_lora_adapter", {"lora_name": "passing"})[0] == 404
    assert "passing" not in [item["id"] for item in small.get("/v1/models")[1]["data"]]


def test_a_failed_swap_changes_nothing(small: SpecialistProcess, root: Path, tmp_path: Path) -> None:
    before = small.load("stays", root / "thinker")["digest"]
    broken = root / "cut"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((root / "caller" / "adapter_config.json").read_bytes())
    (broken / "adapters.safetensors").write_bytes((root / "caller" / "adapters.safetensors").read_bytes()[:-8])
    for path, status, code in (
        (broken, 400, "adapter_invalid"),
        (root / "nowhere", 404, "adapter_not_found"),
        (tmp_path, 403, "adapter_path_forbidden"),
    ):
        got, body = small.post(
            "/v1/load_lora_adapter", {"lora_name": "stays", "lora_path": str(path), "load_inplace": True}
        )
        assert got == status, body
        assert_envelope(body, code)
    entry = next(item for item in small.get("/v1/adapters")[1]["data"] if item["id"] == "stays")
    assert entry["digest"] == before
    assert small.post(CHAT, {"model": "stays", "messages": HI})[1]["choices"][0]["message"]["content"] == "ok"
    small.post("/v1/unload_lora_adapter", {"lora_name": "stays"})


def test_a_web_page_cannot_change_adapters(small: SpecialistProcess) -> None:
    body = json.dumps({"lora_name": "endless"}).encode()
    path = "/v1/unload_lora_adapter"
    assert small.request("POST", path, body, {"content-type": "text/plain"})[0] == 415
    assert small.request("POST", path, body, {"origin": "https://example.org"})[0] == 403
    assert small.request("POST", path, body, {"host": "rebound.example.org"})[0] == 403


def test_a_rebound_name_is_refused(small: SpecialistProcess) -> None:
    rebound = {"host": "rebound.example.org"}
    status, answer = small.request("GET", "/v1/models", None, rebound)
    assert status == 403
    assert_envelope(answer, "forbidden")
    assert small.request("POST", CHAT, json.dumps({"model": "base", "messages": HI}).encode(), rebound)[0] == 403
    assert small.request("GET", "/ready", None, rebound)[0] == 200


def test_a_request_that_takes_too_long_ends(root: Path) -> None:
    with specialist_process(
        root / "slow", root / "base", top=f'adapter_roots = ["{root}"]', request_timeout_s=0.4, max_context=100000
    ) as running:
        running.load("endless", root / "endless")
        status, body = running.post(CHAT, {**LONG, "n": 16})
        assert status == 504
        assert_envelope(body, "request_timeout")
        with open_stream(running, {**LONG, "n": 16}) as response:
            events = SSEReader().feed(b"data:" + response.read())
        assert json.loads(events[-1])["error"]["code"] == "request_timeout"
        running.wait("/ready", lambda status, body: body["queue"]["running"] == 0)


def test_admin_token(root: Path) -> None:
    top = f'adapter_roots = ["{root}"]\n[security]\nadmin_token = "s3cret"\n'
    with specialist_process(root / "guarded", root / "base", top=top) as running:
        body = {"lora_name": "thinker", "lora_path": str(root / "thinker")}
        assert running.post("/v1/load_lora_adapter", body)[0] == 401
        assert running.post("/v1/load_lora_adapter", body, {"authorization": "Bearer wrong"})[0] == 401
        assert running.post("/v1/load_lora_adapter", body, {"authorization": "Bearer s3cret"})[0] == 200
        assert running.post(CHAT, {"model": "thinker", "messages": HI})[0] == 200


def test_sigterm_lets_answers_end(root: Path) -> None:
    with specialist_process(root / "drain", root / "base", top=f'adapter_roots = ["{root}"]') as running:
        running.load("endless", root / "endless")
        with open_stream(running, {**LONG, "max_tokens": 600}) as response:
            running.process.send_signal(signal.SIGTERM)
            text = response.read()
        assert text.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in text
        assert running.process.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            running.get("/health")


def test_a_specialist_leaves_with_its_parent(root: Path, tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:] + ['--parent-pid', str(__import__('os').getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)  # until it is killed\n"
    )
    port = free_port()
    config = write_config(tmp_path, root / "base", port, {})
    command = [sys.executable, "-m", "mlx_router", "specialist", "test", "--config", str(config)]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command, "--home", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    running = SpecialistProcess(parent, f"http://127.0.0.1:{port}", tmp_path, tmp_path / "log")  # type: ignore[arg-type]
    (tmp_path / "log").touch()
    wait_until_ready(running)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        wait_until(lambda: ended(child), "the orphan leaves")
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        raise


def test_a_base_that_is_not_there(root: Path) -> None:
    with specialist_process(root / "none", root / "missing", wait_ready=False) as running:
        assert running.process.wait(30) == 1
        log = running.log.read_text()
    assert "is neither a directory nor a hub name" in log.strip().splitlines()[-1]
    assert not log.strip().splitlines()[-1].startswith(" ")


def test_a_port_in_use(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = write_config(root / "taken", root / "base", taken.getsockname()[1], {})
        command = [sys.executable, "-m", "mlx_router", "specialist", "test", "--config", str(config)]
        ended = subprocess.run([*command, "--home", str(root / "taken")], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "is in use by another program" in ended.stderr
