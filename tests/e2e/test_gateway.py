"""The gateway as clients see it: real processes, sockets and clients, fake words."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_router.protocol.sse import SSEReader
from tests.fake_router import publish_version
from tests.gateway_rig import Rig, http, start_rig
from tests.waiting import wait_until

HEADERS = {"domain", "score", "reason", "adapter", "specialist", "version"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    running = start_rig(tmp_path_factory.mktemp("gateway"), gateway="body_limit_bytes = 2000000")
    yield running
    running.stop()


@pytest.fixture
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.gateway.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def decision(headers: dict[str, str]) -> dict[str, str]:
    return {name: headers[f"x-router-{name}"] for name in HEADERS}


def test_the_decision_is_in_the_headers(rig: Rig) -> None:
    reply = rig.chat("route my kicad board")
    assert reply.status == 200
    assert reply.json()["choices"][0]["message"]["content"] == "hardware answers with mascarade-kicad"
    found = decision(reply.headers)
    assert 0.8 < float(found.pop("score")) <= 0.95
    assert found == {
        "domain": "kicad-pcb",
        "reason": "classified",
        "adapter": "mascarade-kicad",
        "specialist": "hardware",
        "version": "v0001",
    }
    assert reply.headers["x-adapter-digest"] == "sha256:mascarade-kicad"
    assert reply.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("prompt", "reason", "adapter"),
    [
        ("hello", "out_of_domain", "base"),
        ("perhaps", "below_threshold", "base"),
        ("rust please", "unavailable", "base"),
        ("write sql", "classified", "mascarade-sql"),
    ],
)
def test_reasons(rig: Rig, prompt: str, reason: str, adapter: str) -> None:
    reply = rig.chat(prompt)
    assert (reply.headers["x-router-reason"], reply.headers["x-router-adapter"]) == (reason, adapter)
    assert reply.headers["x-adapter"] == adapter
    if reason == "unavailable":
        assert reply.headers["x-router-detail"] == "adapter mascarade-rust is not served"


@pytest.mark.parametrize(
    ("model", "domain", "adapter"),
    [
        ("mascarade-spice", "spice", "mascarade-spice"),
        ("kicad-dsl", "kicad-dsl", "mascarade-kicad"),
        ("base", "general", "base"),
    ],
)
def test_explicit_names(rig: Rig, model: str, domain: str, adapter: str) -> None:
    headers = rig.chat("write sql", model=model).headers
    assert (headers["x-router-domain"], headers["x-router-adapter"]) == (domain, adapter)
    assert headers["x-router-reason"] == "explicit"


def test_unknown_models_are_404(rig: Rig) -> None:
    reply = rig.chat("hi", model="gpt-4")
    assert reply.status == 404
    assert reply.json()["error"] == {
        "message": "the model 'gpt-4' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_bytes_are_those_of_the_specialist(rig: Rig) -> None:
    body = {"model": "mascarade-sql", "messages": [{"role": "user", "content": "é"}]}
    for extra in ({}, {"stream": True, "x_test": {"cut": 7}}, {"stream": True, "x_test": {"chunks": 64}}):
        direct = http(f"{rig.specialists['code'].url}/v1/chat/completions", {**body, **extra})
        through = rig.post("/v1/chat/completions", {**body, **extra})
        assert through.status == 200
        assert through.body == direct.body
        assert through.headers["content-type"] == direct.headers["content-type"]


def test_only_the_model_is_changed_on_the_way(rig: Rig) -> None:
    code = rig.specialists["code"]
    code.control(forget=True)
    raw = b'{ "model" : "auto", "temperature": 0.50, "messages":[{"role":"user","content":"write sql \\u00e9"}] }'
    rig.post("/v1/chat/completions", raw, headers={"x-request-id": "mine-1", "cookie": "secret", "traceparent": "00-a"})
    seen = code.control()["seen"][-1]
    assert seen["raw"].encode() == raw.replace(b'"auto"', b'"mascarade-sql"')
    assert seen["headers"]["x-request-id"] == "mine-1"
    assert seen["headers"]["traceparent"] == "00-a"
    assert "cookie" not in seen["headers"]


def test_the_official_client(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "simulate it in spice"}]
    raw = client.chat.completions.with_raw_response.create(model="ailiance/auto", messages=messages)
    assert raw.headers["x-router-adapter"] == "mascarade-spice"
    assert raw.parse().choices[0].message.content == "hardware answers with mascarade-spice"
    with client.chat.completions.create(model="auto", messages=messages, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "0é 1é 2é 3é "
    answer = client.completions.create(model="auto", prompt="select in sql")
    assert answer.choices[0].text == "code answers with mascarade-sql"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=messages)


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model.model_extra or {} for model in client.models.list()}
    assert set(models) == {
        "ailiance/auto",
        "base",
        "mascarade-kicad",
        "mascarade-spice",
        "mascarade-sql",
        "mascarade-coder",
    }
    assert models["base"]["root"] == "fake-base"
    assert models["mascarade-sql"]["parent"] == "base"
    assert client.models.retrieve("ailiance/auto").id == "ailiance/auto"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_embeddings(rig: Rig, client: openai.OpenAI) -> None:
    vectors = client.embeddings.create(model="all-MiniLM-L6-v2", input=["a", "b"]).data
    assert [len(item.embedding) for item in vectors] == [384, 384]
    body = {"model": "minilm", "input": "a"}
    plain = rig.post("/v1/embeddings", {**body, "encoding_format": "float"}).json()["data"][0]["embedding"]
    packed = rig.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert plain == list(struct.unpack("<384f", base64.b64decode(packed)))
    assert rig.post("/v1/embeddings", {**body, "model": "gpt"}).status == 404
    assert rig.post("/v1/embeddings", {**body, "input": []}).status == 400
    assert rig.post("/v1/embeddings", {**body, "dimensions": 3}).json()["error"]["param"] == "dimensions"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_and_an_sse_reader(rig: Rig) -> None:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "python"}], "stream": True})
    done = subprocess.run(
        ["curl", "-sN", "-D", "-", f"{rig.gateway.url}/v1/chat/completions", "-d", body],
        capture_output=True,
        check=True,
    )
    head, _, stream = done.stdout.partition(b"\r\n\r\n")
    assert b"x-router-adapter: mascarade-coder" in head
    events = SSEReader().feed(stream)
    assert events[-1] == "[DONE]"
    assert len(events) == 6


def test_route(rig: Rig) -> None:
    found = rig.post("/v1/route", {"prompt": "my kicad board", "top": 3}).json()
    assert found["domain"] == "kicad-pcb"
    assert found["reason"] == "classified"
    assert found["target"] == {"specialist": "hardware", "adapter": "mascarade-kicad"}
    assert found["router"] == "v0001"
    assert len(found["scores"]) == 3
    assert found["selections"][0]["domain"] == "kicad-pcb"
    turns = [
        {"role": "user", "content": "in sql"},
        {"role": "assistant", "content": "…"},
        {"role": "user", "content": "go on"},
    ]
    assert rig.post("/v1/route", {"messages": turns}).json()["domain"] == "sql"
    assert rig.post("/v1/route", {"prompt": "rust"}).json()["target"] == {"specialist": "hardware", "adapter": None}
    assert rig.post("/v1/route", {}).status == 400
    assert rig.post("/v1/route", {"prompt": "a", "messages": []}).status == 400


def test_a_conversation_stays_with_its_specialist(rig: Rig) -> None:
    def turn(*prompts: str) -> dict[str, str]:
        messages: list[dict[str, str]] = []
        for prompt in prompts:
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": "…"}]
        body = {"model": "auto", "messages": messages[:-1]}
        return decision(rig.post("/v1/chat/completions", body).headers)

    assert turn("a kicad question to stick to")["domain"] == "kicad-pcb"
    assert turn("a kicad question to stick to", "perhaps something about tables")["domain"] == "kicad-pcb"
    assert turn("a kicad question to stick to", "no, now in sql")["domain"] == "sql"


def test_conversations_that_begin_alike_are_not_one(rig: Rig) -> None:
    def turn(*prompts: str, **fields: Any) -> dict[str, str]:
        messages = [{"role": "assistant" if n % 2 else "user", "content": prompt} for n, prompt in enumerate(prompts)]
        return decision(rig.post("/v1/chat/completions", {"model": "auto", "messages": messages, **fields}).headers)

    assert turn("good day")["domain"] == "general"
    assert turn("good day", "Hello.", "place my kicad parts")["domain"] == "kicad-pcb"
    assert turn("good day", "Hi!", "perhaps the weather")["domain"] == "general"
    assert turn("place more kicad parts", prompt_cache_key="an app")["domain"] == "kicad-pcb"
    assert turn("perhaps the weather", prompt_cache_key="an app")["domain"] == "general"


def test_boilerplate_does_not_route(rig: Rig) -> None:
    prompt = "<system-reminder>always use sql</system-reminder>place my kicad parts"
    assert rig.chat(prompt).headers["x-router-domain"] == "kicad-pcb"


def test_errors_of_the_specialist_come_through(rig: Rig) -> None:
    reply = rig.chat("write sql", x_test={"status": 400})
    assert reply.status == 400
    assert reply.json()["error"]["code"] == "fake_400"
    assert reply.headers["x-router-adapter"] == "mascarade-sql"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model":"auto"}', "messages"),
        (b'{"model":"auto","messages":[]}', "messages"),
        (b'{"model":3,"messages":[{}]}', "model"),
    ],
)
def test_bad_bodies(rig: Rig, body: bytes, param: str | None) -> None:
    reply = rig.post("/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.json()["error"]["param"] == param


def test_large_bodies_are_refused(rig: Rig) -> None:
    for path in ("/v1/chat/completions", "/v1/route"):
        reply = rig.post(path, b'{"prompt":"' + b"x" * 2_000_000 + b'"}')
        assert reply.status == 413
        assert reply.json()["error"]["code"] == "body_too_large"


def test_wrong_methods_and_paths(rig: Rig) -> None:
    assert rig.get("/v1/chat/completions").status == 405
    assert rig.post("/health", {}).status == 405
    assert rig.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert rig.get("/../../etc/passwd").status in (400, 404)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/status", "/v1/decisions", "/metrics", "/v1/chat/completions"])
def test_a_rebound_name_is_refused(rig: Rig, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else None
    port = rig.gateway.port
    reply = http(rig.gateway.url + path, body, headers={"host": f"rebound.example:{port}"})
    assert reply.status == 403
    assert (reply.json()["error"]["code"], reply.json()["error"]["type"]) == ("forbidden", "permission_error")
    assert http(rig.gateway.url + path, body, headers={"host": f"localhost:{port}"}).status == 200


def test_health_ready_status_decisions_metrics(rig: Rig) -> None:
    asked = rig.chat("write sql for the log", headers={"x-request-id": "seen-in-the-log"})
    assert rig.get("/health").json()["status"] == "ok"
    ready = rig.get("/ready").json()
    assert ready["ready"]
    assert set(ready["parts"]) == {"router", "hardware", "code"}
    status = rig.get("/v1/status").json()
    assert status["router"]["version"] == "v0001"
    assert status["router"]["metrics"] == {"macro_f1": 0.9}
    assert {item["name"]: len(item["adapters"]) for item in status["specialists"]} == {"hardware": 2, "code": 2}
    assert status["processes"] is None
    assert "/secret" not in json.dumps(status)
    entry = next(e for e in rig.get("/v1/decisions").json()["data"] if e["request_id"] == "seen-in-the-log")
    assert (entry["domain"], entry["adapter"], entry["status"]) == ("sql", "mascarade-sql", 200)
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (7, 5)
    assert "prompt" not in entry
    path = rig.home / "log" / "decisions.jsonl"
    wait_until(lambda: path.exists() and "seen-in-the-log" in path.read_text(), "the line in the log")
    assert asked.headers["x-request-id"] == "seen-in-the-log"
    families = {f.name: f for f in text_string_to_metric_families(rig.get("/metrics").body.decode())}
    labels = {"domain": "sql", "adapter": "mascarade-sql", "reason": "classified", "status": "200"}
    assert any(
        labels.items() <= sample.labels.items() for sample in families["mlx_router_requests"].samples if sample.value
    )
    for name in (
        "tokens",
        "errors",
        "encode_seconds",
        "overhead_seconds",
        "cache_hits",
        "encoder_queue",
        "upstream_up",
    ):
        assert f"mlx_router_{name}" in families, name


@pytest.mark.parametrize(("model", "logged"), [("gpt-4", "gpt-4"), ('a "name"', 'a "name"'), (None, "auto"), (7, None)])
def test_a_refused_request_is_logged_with_the_model_it_named(rig: Rig, model: Any, logged: str | None) -> None:
    request_id = f"refused-{logged or 'number'}".replace(" ", "-").replace('"', "")
    messages = [] if model is None else [{"role": "user", "content": "hello"}]
    body = {"model": model, "messages": messages}
    reply = http(f"{rig.gateway.url}/v1/chat/completions", body, headers={"x-request-id": request_id})
    assert reply.status in (400, 404)
    entry = next(e for e in rig.get("/v1/decisions").json()["data"] if e["request_id"] == request_id)
    assert (entry["model"], entry["status"]) == (logged, reply.status)


def test_a_wrong_parameter_of_an_address_is_named(rig: Rig) -> None:
    refused = rig.get("/v1/decisions?limit=x")
    assert (refused.status, refused.json()["error"]["param"]) == (400, "limit")
    assert refused.json()["error"]["message"].startswith("limit: ")


def test_a_slow_upload_is_no_overhead_of_ours(rig: Rig) -> None:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "sql, in time"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10) as client:
        client.sendall(head.encode() + body[:9])
        wait_until(lambda: rig.get("/v1/status").json()["gateway"]["active"] == 1, "the request")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 0.3, "a while")
        client.sendall(body[9:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    entry = rig.get("/v1/decisions?limit=1").json()["data"][0]
    assert entry["overhead_ms"] < 300 < entry["total_ms"]


def test_overhead_is_finer_than_a_millisecond(rig: Rig) -> None:
    for _ in range(5):
        rig.chat("sql, in fractions of a millisecond")
    entries = rig.get("/v1/decisions?limit=5").json()["data"]
    assert all(entry["overhead_ms"] > 0 for entry in entries)


def test_processes_come_from_the_supervisors_record_without_paths(rig: Rig) -> None:
    run = rig.home / "run"
    run.mkdir()
    child = {"name": "code", "state": "ready", "log": str(rig.home / "log" / "code.log"), "reason": f"see {rig.home}/x"}
    (run / "status.json").write_text(json.dumps({"children": [child], "config": "/etc/x.toml"}))
    try:
        reply = rig.get("/v1/status")
        assert reply.json()["processes"] == {
            "children": [{"name": "code", "state": "ready", "reason": "see $MLX_ROUTER_HOME/x"}]
        }
        assert str(rig.home) not in reply.body.decode()
    finally:
        (run / "status.json").unlink()
        run.rmdir()


def test_the_cache_answers_what_was_asked_before(rig: Rig) -> None:
    rig.post("/v1/route", {"prompt": "a python prompt asked twice"})
    again = rig.post("/v1/route", {"prompt": "a python prompt asked twice"}).json()
    assert again["encode_ms"] == 0.0


def test_adapters_are_loaded_and_unloaded_through_the_gateway(rig: Rig) -> None:
    assert rig.post("/v1/unload_lora_adapter", {"lora_name": "mascarade-coder"}).json()["status"] == "unloaded"
    reply = rig.chat("python please")
    assert reply.headers["x-router-reason"] == "unavailable"
    assert reply.headers["x-router-adapter"] == "base"
    loaded = rig.post("/v1/load_lora_adapter", {"lora_name": "mascarade-coder", "lora_path": "x"})
    assert loaded.json()["status"] == "loaded"
    assert rig.chat("python please").headers["x-router-adapter"] == "mascarade-coder"
    again = rig.post("/v1/load_lora_adapter", {"lora_name": "mascarade-coder", "lora_path": "x"})
    assert (again.status, again.json()["error"]["code"]) == (409, "fake_409")
    fresh = rig.post("/v1/load_lora_adapter", {"lora_name": "fresh", "lora_path": "x", "specialist": "code"})
    assert fresh.status == 200
    assert rig.chat("hello", model="fresh").headers["x-router-specialist"] == "code"
    assert rig.post("/v1/unload_lora_adapter", {"lora_name": "fresh"}).status == 200
    assert rig.chat("hello", model="fresh").status == 404
    elsewhere = {"lora_name": "mascarade-coder", "lora_path": str(rig.home.parent / "elsewhere")}
    refused = rig.post("/v1/load_lora_adapter", elsewhere)
    assert refused.status == 403
    assert refused.json()["error"]["message"] == "~/elsewhere lies outside the adapter roots"
    unknown = rig.post("/v1/load_lora_adapter", {"lora_name": "whose", "lora_path": "x"})
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "adapter_not_found")
    assert {item["id"] for item in rig.get("/v1/adapters").json()["data"]} >= {"mascarade-coder", "mascarade-sql"}


def test_a_specialist_whose_answers_come_in_pieces(rig: Rig) -> None:
    code = rig.specialists["code"]
    code.control(split=True)
    try:
        body = {"lora_name": "mascarade-sql", "load_inplace": True}
        assert rig.post("/v1/load_lora_adapter", body).json()["status"] == "replaced"
        part = rig.get("/ready").json()["parts"]["code"]
        assert (part["ready"], part["reason"]) == (True, None)
        assert rig.chat("write sql").headers["x-router-adapter"] == "mascarade-sql"
    finally:
        code.control(split=False)


def test_a_quarantined_adapter_takes_no_traffic(rig: Rig) -> None:
    hardware = rig.specialists["hardware"]
    adapters = {"mascarade-kicad": "resident", "mascarade-spice": "quarantined"}
    hardware.control(adapters=adapters)
    try:
        # Whether a probe has seen it or the specialist has to refuse it, the answer is the base's.
        reply = rig.chat("spice netlist")
        assert (reply.headers["x-router-reason"], reply.headers["x-router-adapter"]) == ("unavailable", "base")
        assert "mascarade-spice" in reply.headers["x-router-detail"]
        wait_until(lambda: rig.chat("x", model="mascarade-spice").status == 409, "the refusal of the explicit name")
    finally:
        hardware.control(adapters=dict.fromkeys(adapters, "resident"))
        wait_until(lambda: rig.chat("spice").headers["x-router-adapter"] == "mascarade-spice", "back in service")


def test_versions_are_activated_and_rolled_back(rig: Rig) -> None:
    second = publish_version(rig.home, activate=False)
    done = rig.post("/v1/router/activate", {"version": second}).json()
    assert done == {"version": second, "previous": "v0001", "notice": None}
    assert rig.chat().headers["x-router-version"] == second
    assert rig.post("/v1/router/activate", {"version": "v0999"}).status == 404
    assert rig.post("/v1/router/activate", {"version": "../x"}).status == 400
    (rig.home / "router" / publish_version(rig.home, activate=False) / "meta.json").write_text("spoilt")
    spoilt = rig.post("/v1/router/activate", {"version": "v0003"})
    assert (spoilt.status, spoilt.json()["error"]["code"]) == (409, "version_corrupt")
    assert str(rig.home) not in spoilt.body.decode()
    assert rig.chat().headers["x-router-version"] == second
    assert rig.post("/v1/router/rollback", {}).json()["version"] == "v0001"
    assert rig.chat().headers["x-router-version"] == "v0001"
    assert rig.post("/v1/router/rollback", {}).status == 404


def test_a_router_that_fails_costs_the_route_not_the_answer(rig: Rig) -> None:
    reply = rig.chat("boom")
    assert reply.status == 200
    assert (reply.headers["x-router-reason"], reply.headers["x-router-adapter"]) == ("unavailable", "base")
    assert rig.post("/v1/route", {"prompt": "boom"}).json()["error"]["code"] == "router_unavailable"


def test_a_client_that_leaves_ends_the_work_upstream(rig: Rig) -> None:
    code = rig.specialists["code"]
    before = code.control()["cancelled"]
    for stream, hold in ((False, {"hold": "never"}), (True, {"hold": "never", "hold_after": 1})):
        body = json.dumps(
            {"model": "base", "stream": stream, "messages": [{"role": "user", "content": "x"}], "x_test": hold}
        ).replace('"base"', '"mascarade-sql"')
        with socket.create_connection(("127.0.0.1", rig.gateway.port)) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body.encode())
            wait_until(lambda: code.control()["running"] >= 1, "the request at the specialist")
            if stream:
                assert b"200" in client.recv(100)
        wait_until(lambda: code.control()["running"] == 0, "the end of the work")
    assert code.control()["cancelled"] == before + 2


def test_the_page_has_its_headers(rig: Rig) -> None:
    reply = rig.get("/")
    if reply.status == 404:
        pytest.skip("no page here yet")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert rig.get("/__init__.py").status == 404


def test_the_openapi_document_has_every_route(rig: Rig) -> None:
    paths = rig.get("/openapi.json").json()["paths"]
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/embeddings",
        "/v1/route",
        "/health",
        "/ready",
    } <= set(paths)
