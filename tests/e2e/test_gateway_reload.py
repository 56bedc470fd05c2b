"""What changes while the gateway serves: the file, the active version, the fleet."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlx_router.artifacts.store import RouterStore
from mlx_router.protocol.sse import SSEReader
from tests.fake_router import publish_version
from tests.gateway_rig import FLEET, Rig, config_text, specialist, start_rig
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    running = start_rig(tmp_path_factory.mktemp("reload"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _restore(rig: Rig) -> Iterator[None]:
    text = rig.config.read_text()
    yield
    rig.config.write_text(text)
    wait_until(lambda: adapter(rig, "sql") == "mascarade-sql", "the first configuration again")


def adapter(rig: Rig, prompt: str) -> str:
    return rig.chat(prompt).headers["x-router-adapter"]


def test_a_saved_file_counts_and_running_answers_go_on(rig: Rig) -> None:
    code = rig.specialists["code"]
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(rig.chat, "sql", stream=True, x_test={"hold": "reload", "hold_after": 2})
        wait_until(lambda: code.control()["running"] == 1, "the stream")
        with rig.config.open("a") as file:
            file.write('[routes]\nsql = "base"\n')
        wait_until(lambda: adapter(rig, "sql") == "base", "the new route")
        code.control(release="reload")
        reply = streaming.result()
    assert SSEReader().feed(reply.body)[-1] == "[DONE]"
    assert reply.headers["x-router-adapter"] == "mascarade-sql"


def test_max_active_bounds_the_selections(rig: Rig) -> None:
    def selected() -> list[str]:
        found = rig.post("/v1/route", {"prompt": "python in spice in sql"}).json()
        return [selection["domain"] for selection in found["selections"]]

    assert selected() == ["sql", "spice", "python"]
    with rig.config.open("a") as file:
        file.write("[policy]\nmax_active = 2\n")
    wait_until(lambda: selected() == ["sql", "spice"], "the new bound")
    rig.config.write_text(rig.config.read_text().replace("max_active = 2", "max_active = 4"))
    wait_until(lambda: len(selected()) == 3, "the old bound")


def test_an_invalid_file_is_refused_and_said(rig: Rig) -> None:
    with rig.config.open("a") as file:
        file.write('[routes]\nsql = "mascarade-sqll"\n')
    part = wait_until(lambda: rig.get("/ready").json()["parts"].get("config"), "the refusal")
    assert "did you mean 'mascarade-sql'" in part["notice"]
    assert adapter(rig, "sql") == "mascarade-sql"
    assert rig.get("/v1/status").json()["gateway"]["config_error"]


def test_a_route_of_no_domain_is_refused_as_serve_refuses_it(rig: Rig) -> None:
    with rig.config.open("a") as file:
        file.write('[routes]\nsql = "base"\nsqll = "base"\n')
    hint = "'sqll' is no domain; did you mean 'sql'?"
    wait_until(lambda: hint in rig.get("/ready").json()["parts"].get("config", {}).get("notice", ""), "the refusal")
    assert adapter(rig, "sql") == "mascarade-sql"


def test_sighup_reloads(rig: Rig) -> None:
    before = rig.get("/v1/status").json()["gateway"]["config_loaded_at"]
    assert rig.gateway.child is not None
    rig.gateway.child.send_signal(signal.SIGHUP)
    wait_until(lambda: rig.get("/v1/status").json()["gateway"]["config_loaded_at"] > before, "the reload")


def test_a_specialist_can_be_added(rig: Rig) -> None:
    extra = specialist(rig.config.parent, "rusty", "mascarade-rust")
    try:
        extra.wait()
        assert adapter(rig, "rust") == "base"
        text = config_text(
            rig.gateway.port, {**rig.specialists, "rusty": extra}, {**FLEET, "rusty": "mascarade-rust"}, "", ""
        )
        rig.config.write_text(text)
        wait_until(lambda: adapter(rig, "rust") == "mascarade-rust", "the new specialist")
    finally:
        extra.kill()


def test_replicas_share_the_load_and_stand_in(rig: Rig) -> None:
    twin = specialist(rig.config.parent, "twin", FLEET["code"])
    try:
        twin.wait()
        text = rig.config.read_text().replace(
            f"port = {rig.specialists['code'].port}",
            f'port = {rig.specialists["code"].port}\nreplicas = ["{twin.url}/v1"]',
        )
        rig.config.write_text(text)
        wait_until(lambda: len([s for s in up(rig) if s == "code"]) == 2, "both replicas")
        answers = {rig.chat(f"sql number {n}").json()["choices"][0]["message"]["content"] for n in range(4)}
        assert answers == {"code answers with mascarade-sql", "twin answers with mascarade-sql"}
        twin.kill()
        for number in range(4):
            reply = rig.chat(f"sql without twin {number}")
            assert reply.headers["x-router-reason"] == "classified"
    finally:
        twin.kill()


def up(rig: Rig) -> list[str]:
    return [item["name"] for item in rig.get("/v1/status").json()["specialists"] if item["state"] == "up"]


def test_a_conversation_stays_with_its_replica(rig: Rig) -> None:
    twin = specialist(rig.config.parent, "twin2", FLEET["code"])
    try:
        twin.wait()
        port = rig.specialists["code"].port
        rig.config.write_text(
            rig.config.read_text().replace(f"port = {port}", f'port = {port}\nreplicas = ["{twin.url}"]')
        )
        wait_until(lambda: len([s for s in up(rig) if s == "code"]) == 2, "both replicas")
        turns = [rig.chat("sql", headers={"x-conversation-id": "c1"}).body for _ in range(4)]
        assert len(set(turns)) == 1
        apps = [rig.chat(f"sql {n}", prompt_cache_key="an app").body for n in range(4)]
        assert len(set(apps)) == 1
    finally:
        twin.kill()


def test_a_version_activated_elsewhere_is_picked_up(rig: Rig) -> None:
    version = publish_version(rig.home)
    wait_until(lambda: rig.chat().headers["x-router-version"] == version, "the new version")


def test_a_corrupt_version_activated_elsewhere_is_not_served(rig: Rig) -> None:
    served = rig.chat().headers["x-router-version"]
    version = publish_version(rig.home, activate=False)
    (RouterStore(rig.home).path(version) / "meta.json").write_text(json.dumps("spoilt"))
    (rig.home / "router" / "CURRENT").write_text(version + "\n")
    part = wait_until(lambda: rig.get("/ready").json()["parts"]["router"]["notice"], "the notice")
    assert version in part
    assert str(rig.home) not in part
    reply = rig.chat()
    assert reply.headers["x-router-version"] == served
    assert rig.get("/v1/status").json()["router"]["notice"] == part
    RouterStore(rig.home).activate(served)
    wait_until(lambda: rig.get("/ready").json()["parts"]["router"]["notice"] is None, "all well again")
