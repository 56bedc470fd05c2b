"""Gateway and specialist as they are, over a tiny model: clients get the same, plus the headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from mlx_router.protocol.sse import SSEReader
from tests import tiny_chat
from tests.fake_router import publish_version
from tests.gateway_rig import Process, Reply, free_port, http
from tests.specialist_process import SpecialistProcess, specialist_process
from tests.tiny_chat import ANSWER
from tests.waiting import wait_until

CHANGING = {"id", "created"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("both")
    tiny_chat.save_scripted(root / "base")
    tiny_chat.save_starter(root / "thinker", "<think>")
    tiny_chat.save_starter(root / "caller", "<tool_call>")
    tiny_chat.save_starter(root / "endless", "loop")
    return root


@pytest.fixture(scope="module")
def specialist(root: Path) -> Iterator[SpecialistProcess]:
    with specialist_process(root / "home", root / "base", top=f'adapter_roots = ["{root}"]', slots=4) as running:
        running.load("mascarade-sql", root / "thinker")
        running.load("mascarade-coder", root / "endless")
        yield running


@pytest.fixture(scope="module")
def gateway(root: Path, specialist: SpecialistProcess) -> Iterator[Process]:
    home = root / "gateway"
    home.mkdir()
    publish_version(home)
    port = free_port()
    config = home / "mlx-router.toml"
    config.write_text(
        f"[gateway]\nport = {port}\nprobe_interval_s = 0.2\n[[specialist]]\nname = 'code'\n"
        f"port = {specialist.url.rpartition(':')[2]}\nadapters = ['mascarade-sql', 'mascarade-coder']\n"
    )
    arguments = ["-m", "tests.gateway_process", "--config", str(config), "--home", str(home)]
    process = Process(arguments, port, root / "gateway.log").start()
    try:
        yield process.wait()
    finally:
        process.kill()


def ask(url: str, **fields: Any) -> Reply:
    body = {"messages": [{"role": "user", "content": "write sql, Zürich 🙂"}], **fields}
    return http(f"{url}/v1/chat/completions", body)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    left, right = ({key: value for key, value in item.items() if key not in CHANGING} for item in (one, other))
    for item in (left, right):
        item.pop("usage", None)  # what is cached differs from one time to the next
    return left == right


def test_an_answer_is_the_specialists(gateway: Process, specialist: SpecialistProcess) -> None:
    for model, adapter in (("base", "base"), ("mascarade-sql", "mascarade-sql")):
        direct, through = ask(specialist.url, model=model), ask(gateway.url, model=model)
        assert same(direct.json(), through.json())
        ours = {name for name in through.headers if name.startswith("x-router-")}
        assert len(ours) == 6
        kept = set(direct.headers) - {"date", "server", "content-length", "connection"}
        assert kept <= set(through.headers)
        assert through.headers["x-adapter-digest"] == direct.headers["x-adapter-digest"]
        assert through.headers["x-router-adapter"] == adapter


def test_routed_answers_come_from_the_adapter_they_name(gateway: Process) -> None:
    routed = ask(gateway.url, model="ailiance/auto")
    assert routed.headers["x-router-adapter"] == routed.headers["x-adapter"] == "mascarade-sql"
    assert routed.json()["model"] == "mascarade-sql"
    plain = http(
        f"{gateway.url}/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    )
    assert plain.headers["x-adapter"] == "base"
    assert plain.json()["choices"][0]["message"]["content"] == ANSWER


def test_a_stream_is_the_specialists(gateway: Process, specialist: SpecialistProcess) -> None:
    options = {"model": "mascarade-sql", "stream": True, "stream_options": {"include_usage": True}}
    direct, through = ask(specialist.url, **options), ask(gateway.url, **options)
    left, right = SSEReader().feed(direct.body), SSEReader().feed(through.body)
    assert left[-1] == right[-1] == "[DONE]"
    assert len(left) == len(right)
    assert all(same(json.loads(a), json.loads(b)) for a, b in zip(left[:-1], right[:-1], strict=True))
    assert direct.headers["content-type"] == through.headers["content-type"]


def test_errors_are_the_specialists(gateway: Process, specialist: SpecialistProcess) -> None:
    for fields in ({"temperature": 9}, {"max_tokens": 10**6}, {"messages": [{"role": "nobody", "content": "x"}]}):
        direct, through = ask(specialist.url, model="base", **fields), ask(gateway.url, model="base", **fields)
        assert through.status == direct.status == 400
        assert through.body == direct.body


def test_the_official_client(gateway: Process) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        assert client.chat.completions.create(model="auto", messages=messages).choices[0].message.content == ANSWER
        with client.chat.completions.create(model="auto", messages=messages, stream=True) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == ANSWER
        assert client.completions.create(model="base", prompt="x", max_tokens=2).usage is not None


def test_an_adapter_is_swapped_through_the_gateway_while_a_stream_runs(
    gateway: Process, specialist: SpecialistProcess, root: Path
) -> None:
    def load(name: str) -> Reply:
        body = {"lora_name": "mascarade-coder", "lora_path": str(root / name), "load_inplace": True}
        return http(f"{gateway.url}/v1/load_lora_adapter", body)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, gateway.url, model="mascarade-coder", stream=True, max_tokens=300)
        wait_until(lambda: specialist.get("/ready")[1]["queue"]["running"] == 1, "the stream")
        swapped = load("caller")
        stream = running.result()
    assert (swapped.status, swapped.json()["status"]) == (200, "replaced")
    assert stream.headers["x-adapter-digest"] == swapped.json()["previous_digest"]
    assert b"loop" in stream.body
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert ask(gateway.url, model="mascarade-coder").headers["x-adapter-digest"] == swapped.json()["digest"]
    assert load("endless").status == 200


def test_unloading_leaves_the_base(gateway: Process, root: Path) -> None:
    assert http(f"{gateway.url}/v1/unload_lora_adapter", {"lora_name": "mascarade-sql"}).status == 200
    try:
        reply = ask(gateway.url, model="auto")
        assert (reply.headers["x-router-reason"], reply.headers["x-adapter"]) == ("unavailable", "base")
        assert reply.headers["x-router-domain"] == "sql"
        named = ask(gateway.url, model="mascarade-sql")
        assert (named.status, named.json()["error"]["code"]) == (404, "model_not_found")
    finally:
        body = {"lora_name": "mascarade-sql", "lora_path": str(root / "thinker")}
        assert http(f"{gateway.url}/v1/load_lora_adapter", body).status == 200
