"""What breaks around the gateway, with real processes: nothing hangs, nothing is lost in silence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_router.artifacts.store import RouterStore
from mlx_router.protocol.sse import SSEReader
from tests.fake_router import publish_version
from tests.gateway_rig import ROOT, Process, Reply, Rig, all_up, free_port, specialist, start_rig
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    running = start_rig(tmp_path_factory.mktemp("faults"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("impatient")
    other = specialist(folder, "other", "")
    running = start_rig(
        folder,
        gateway="first_byte_timeout_s = 1.0\nidle_timeout_s = 1.0",
        extra=f'[[upstream]]\nname = "other"\nurl = "{other.url}/v1"\nmodel = "base"',
    )
    running.specialists["other"] = other
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds its fleet alive."""
    yield
    for name in ("rig", "impatient"):
        if name in request.fixturenames:
            restore(request.getfixturevalue(name))


def restore(rig: Rig) -> None:
    for process in rig.specialists.values():
        if process.child is None or process.child.poll() is not None:
            process.start()
            process.wait()
        process.control(full=False, ready=True)
    wait_until(lambda: all_up(rig) and classified(rig, "kicad") and classified(rig, "sql"), "the fleet again")


def classified(rig: Rig, prompt: str) -> bool:
    return rig.chat(prompt).headers.get("x-router-reason") == "classified"


def error_of(reply: Reply) -> dict[str, str]:
    """The error in the last event of a stream."""
    found: dict[str, str] = json.loads(SSEReader().feed(reply.body)[-1])["error"]
    return found


def test_kill_9_of_a_specialist_under_50_requests(rig: Rig) -> None:
    hardware = rig.specialists["hardware"]
    with ThreadPoolExecutor(50) as pool:
        streams = [
            pool.submit(rig.chat, "kicad", stream=True, x_test={"hold": "s", "hold_after": 2, "only": "hardware"})
            for _ in range(25)
        ]
        whole = [pool.submit(rig.chat, "kicad", x_test={"hold": "w", "only": "hardware"}) for _ in range(25)]
        wait_until(lambda: hardware.control()["running"] == 50, "50 running")
        started = time.monotonic()
        hardware.kill()
        broken = [future.result() for future in streams]
        answered = [future.result() for future in whole]
    assert time.monotonic() - started < 10
    for reply in broken:
        assert len(SSEReader().feed(reply.body)) == 3  # two events and the error
        assert error_of(reply)["code"] == "upstream_unavailable"
    for reply in answered:
        assert reply.status == 200
        assert reply.headers["x-router-adapter"] == "base"
        assert reply.headers["x-router-reason"] == "unavailable"
        assert reply.headers["x-router-specialist"] == "code"
        assert "hardware" in reply.headers["x-router-detail"]
    hardware.start().wait()
    wait_until(lambda: rig.chat("kicad").headers["x-router-adapter"] == "mascarade-kicad", "back in service", 5)
    assert rig.get("/v1/status").json()["gateway"]["active"] == 0


def test_a_stream_that_dies_in_an_event_ends_with_a_whole_one(rig: Rig) -> None:
    reply = rig.chat("kicad", stream=True, x_test={"die_after": 2, "only": "hardware"})
    assert reply.status == 200
    assert b"half an ev" not in reply.body
    assert error_of(reply)["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_what_dies_before_its_first_byte_is_answered_elsewhere(rig: Rig, stream: bool) -> None:
    reply = rig.chat("kicad", stream=stream, x_test={"die_after": 0, "only": "hardware"})
    assert reply.status == 200
    assert reply.headers["x-router-specialist"] == "code"
    assert reply.headers["x-router-reason"] == "unavailable"


def test_a_request_reaches_two_servers_at_most(rig: Rig) -> None:
    for process in rig.specialists.values():
        process.control(forget=True)
    reply = rig.chat("kicad", x_test={"die_after": 0})
    assert reply.status == 503
    assert reply.json()["error"]["code"] == "upstream_unavailable"
    assert sum(len(process.control()["seen"]) for process in rig.specialists.values()) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
def test_refusals_before_the_first_byte_are_tried_elsewhere(rig: Rig, status: int) -> None:
    reply = rig.chat("kicad", x_test={"status": status, "only": "hardware"})
    assert (reply.status, reply.headers["x-router-specialist"]) == (200, "code")


@pytest.mark.parametrize("status", [503, 504])
def test_one_failed_request_closes_no_specialist(rig: Rig, status: int) -> None:
    def failed() -> list[int]:
        return [item["failed"] for item in rig.get("/v1/status").json()["specialists"]]

    before = failed()
    assert rig.chat("x", model="mascarade-kicad", x_test={"status": status}).status == status
    assert rig.chat("x", model="mascarade-kicad").status == 200
    assert failed() == before


def test_what_a_passed_on_refusal_counts_as(rig: Rig) -> None:
    def counted() -> tuple[float, float]:
        lines = dict(line.rsplit(" ", 1) for line in rig.get("/metrics").body.decode().splitlines())
        names = ('mlx_router_events_total{event="retries"}', "mlx_router_first_byte_seconds_count")
        retries, first_bytes = (float(lines.get(name, 0)) for name in names)
        return retries, first_bytes

    retries, first_bytes = counted()
    assert rig.chat("kicad", x_test={"status": 503}).status == 503
    assert counted() == (retries + 1, first_bytes)
    entry = rig.get("/v1/decisions?limit=1").json()["data"][0]
    assert (entry["retries"], entry["first_byte_ms"]) == (1, None)
    assert rig.chat("x", model="mascarade-kicad", x_test={"status": 503}).status == 503
    assert counted() == (retries + 1, first_bytes)


def test_without_a_free_slot_the_base_of_the_same_specialist_answers(rig: Rig) -> None:
    busy = {"status": 503, "code": "adapter_slots_busy", "model": "mascarade-kicad"}
    reply = rig.chat("kicad", x_test=busy)
    assert (reply.status, reply.headers["x-router-reason"]) == (200, "unavailable")
    assert (reply.headers["x-router-specialist"], reply.headers["x-router-adapter"]) == ("hardware", "base")
    assert "hardware refuses adapter mascarade-kicad (503)" in reply.headers["x-router-detail"]
    named = rig.chat("x", model="mascarade-kicad", x_test=busy)
    assert (named.status, named.json()["error"]["code"]) == (503, "adapter_slots_busy")


def test_a_full_queue(rig: Rig) -> None:
    rig.specialists["hardware"].control(full=True)
    reply = rig.chat("kicad")
    assert (reply.status, reply.headers["x-router-specialist"]) == (200, "code")
    assert "hardware is full" in reply.headers["x-router-detail"]
    rig.specialists["code"].control(full=True)
    replies = [rig.chat("kicad", model=model) for model in ("auto", "auto", "auto", "kicad", "mascarade-kicad")]
    assert {reply.status for reply in replies} == {429}
    assert {reply.headers["retry-after"] for reply in replies} == {"1"}


def test_when_nothing_can_answer_it_says_so_at_once(rig: Rig) -> None:
    for process in rig.specialists.values():
        process.kill()
    rig.chat("kicad")  # the gateway may learn of it from this one
    started = time.monotonic()
    reply = rig.chat("kicad")
    assert time.monotonic() - started < 1
    assert reply.status == 503
    error = reply.json()["error"]
    assert error["code"] == "upstream_unavailable"
    assert "hardware is down: connection refused" in error["message"]
    assert str(rig.specialists["hardware"].port) not in error["message"]
    assert reply.headers["retry-after"] == "1"
    assert (reply.headers["x-router-domain"], reply.headers["x-router-reason"]) == ("kicad-pcb", "unavailable")
    ready = rig.get("/ready")
    assert ready.status == 503
    assert ready.json()["parts"]["code"]["reason"] == "connection refused"


def test_an_explicit_adapter_is_not_replaced(rig: Rig) -> None:
    rig.specialists["hardware"].kill()
    wait_until(lambda: rig.chat("x", model="mascarade-kicad").status == 503, "the refusal")
    domain = rig.chat("x", model="kicad")
    assert (domain.status, domain.headers["x-router-reason"]) == (200, "unavailable")


def test_a_specialist_that_is_not_ready_gets_nothing(rig: Rig) -> None:
    rig.specialists["hardware"].control(ready=False)
    wait_until(lambda: rig.chat("kicad").headers["x-router-specialist"] == "code", "the probe")
    assert "the engine is starting" in rig.chat("kicad").headers["x-router-detail"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stalled_upstream(impatient: Rig, stream: bool) -> None:
    hardware = impatient.specialists["hardware"]
    assert hardware.child is not None
    hardware.child.send_signal(signal.SIGSTOP)
    try:
        first = impatient.chat("kicad", stream=stream)
        assert (first.status, first.headers["x-router-specialist"]) == (200, "code")
        wait_until(lambda: not part_ready(impatient, "hardware"), "the probe's verdict")
        started = time.monotonic()
        second = impatient.chat("kicad")
        assert time.monotonic() - started < 0.9
        assert second.headers["x-router-reason"] == "unavailable"
    finally:
        hardware.child.send_signal(signal.SIGCONT)


def part_ready(rig: Rig, name: str) -> bool:
    return bool(rig.get("/ready").json()["parts"][name]["ready"])


def test_a_stream_that_stalls_ends_with_an_error_event(impatient: Rig) -> None:
    reply = impatient.chat("kicad", stream=True, x_test={"hold": "never", "hold_after": 1})
    assert error_of(reply)["code"] == "upstream_timeout"
    assert "idle time-out" in error_of(reply)["message"]


def test_a_slow_stream_is_no_stalled_one(impatient: Rig) -> None:
    reply = impatient.chat("kicad", stream=True, x_test={"chunks": 5, "pause_s": 0.35})
    assert SSEReader().feed(reply.body)[-1] == "[DONE]"


@pytest.mark.parametrize("fields", [{"stream": True}, {"model": "other"}], ids=["stream", "upstream"])
def test_what_is_slow_is_a_504_and_not_computed_twice(impatient: Rig, fields: dict[str, Any]) -> None:
    for process in impatient.specialists.values():
        process.control(forget=True)
    reply = impatient.chat("kicad", x_test={"hold": "never"}, **fields)
    assert reply.status == 504
    assert "first-byte time-out" in reply.json()["error"]["message"]
    assert sum(len(process.control()["seen"]) for process in impatient.specialists.values()) == 1


def test_an_answer_in_one_piece_may_take_longer_than_a_first_byte(impatient: Rig) -> None:
    hardware = impatient.specialists["hardware"]
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(impatient.chat, "kicad", x_test={"hold": "whole"})
        wait_until(lambda: hardware.control()["running"] == 1, "the request at the specialist")
        for _ in range(2):
            assert impatient.chat("sql", stream=True, x_test={"hold": "never"}).status == 504
        hardware.control(release="whole")
        reply = whole.result()
    assert (reply.status, reply.headers["x-router-reason"]) == (200, "classified")


def test_half_closed_sockets(rig: Rig) -> None:
    code = rig.specialists["code"]
    body = json.dumps(
        {"model": "mascarade-sql", "messages": [{"role": "user", "content": "x"}], "x_test": {"hold": "h"}}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10) as client:
        client.sendall(head.encode() + body.encode())
        wait_until(lambda: code.control()["running"] == 1, "the request at the specialist")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    wait_until(lambda: code.control()["running"] == 0, "the end of the work")
    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=10) as client:
        client.sendall(head.encode())
        client.shutdown(socket.SHUT_WR)
        client.recv(1000)
    wait_until(lambda: rig.get("/v1/status").json()["gateway"]["active"] == 0, "nothing left")


def test_a_port_in_use(rig: Rig) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gateway_process", "--config", str(rig.config), "--home", str(rig.home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"port {rig.gateway.port} on 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_under_the_log(tmp_path: Path) -> None:
    (tmp_path / "home" / "log").mkdir(parents=True)
    (tmp_path / "home" / "log" / "decisions.jsonl").symlink_to("/dev/full")
    rig = start_rig(tmp_path)
    try:
        assert rig.chat("kicad").status == 200
        wait_until(lambda: rig.get("/v1/status").json()["gateway"]["log_error"], "the error in the status")
        assert rig.chat("kicad").status == 200
        assert rig.get("/v1/decisions").json()["data"]
    finally:
        rig.stop()


def test_a_corrupt_active_version_at_the_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    good, bad = publish_version(home), publish_version(home)
    (RouterStore(home).path(bad) / "meta.json").write_text("spoilt")
    rig = start_rig(tmp_path, router=False)
    try:
        assert rig.chat("kicad").headers["x-router-version"] == good
        part = rig.get("/ready").json()["parts"]["router"]
        assert part["ready"]
        assert bad in part["notice"]
        assert rig.get("/v1/status").json()["router"]["version"] == good
    finally:
        rig.stop()


def test_without_any_version_the_base_answers(tmp_path: Path) -> None:
    rig = start_rig(tmp_path, router=False, wait=False)
    try:
        rig.gateway.wait("/health")
        wait_until(lambda: rig.chat("kicad").status == 200, "the specialists")
        reply = rig.chat("kicad")
        assert (reply.headers["x-router-reason"], reply.headers["x-router-adapter"]) == ("unavailable", "base")
        assert reply.headers["x-router-version"] == "none"
        ready = rig.get("/ready")
        assert ready.status == 503
        assert "train one with" in ready.json()["parts"]["router"]["reason"]
        assert str(rig.home) not in ready.body.decode()
        publish_version(rig.home)
        wait_until(lambda: rig.chat("kicad").headers["x-router-reason"] == "classified", "the first version")
    finally:
        rig.stop()


def test_sigterm_lets_answers_end(tmp_path: Path) -> None:
    rig = start_rig(tmp_path)
    code = rig.specialists["code"]
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rig.chat, "sql", stream=True, x_test={"hold": "d", "hold_after": 1})
            wait_until(lambda: code.control()["running"] == 1, "the stream")
            assert rig.gateway.child is not None
            rig.gateway.child.send_signal(signal.SIGTERM)
            wait_until(lambda: not listening(rig.gateway), "no new connections")
            wait_until(lambda: "Waiting for connections" in rig.gateway.log.read_text(), "the patience")
            code.control(release="d")
            assert SSEReader().feed(running.result().body)[-1] == "[DONE]"
        assert rig.gateway.child.wait(10) == 0
        lines = (rig.home / "log" / "decisions.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["status"] == 200
    finally:
        rig.stop()


def listening(process: Process) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", process.port), timeout=1):
            return True
    except OSError:
        return False


def test_sigterm_does_not_wait_for_ever(tmp_path: Path) -> None:
    rig = start_rig(tmp_path, gateway="drain_timeout_s = 1.0")
    code = rig.specialists["code"]
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rig.chat, "sql", stream=True, x_test={"hold": "never", "hold_after": 1})
            wait_until(lambda: code.control()["running"] == 1, "the stream")
            assert rig.gateway.kill(signal.SIGTERM) == 0
            assert "shutting down" in error_of(running.result())["message"]
    finally:
        rig.stop()


def test_an_orphan_leaves(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    publish_version(tmp_path / "home")
    port = free_port()
    config = tmp_path / "mlx-router.toml"
    config.write_text(f"[gateway]\nport = {port}\n")
    code = (
        "import os, subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'tests.gateway_process',"
        f" '--config', {str(config)!r}, '--home', {str(tmp_path / 'home')!r}, '--parent-pid', str(os.getpid())]);"
        " print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    process = Process([], port, tmp_path / "log")
    wait_until(lambda: process.answers("/health"), "the gateway")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not listening(process), "the end of the orphan", 10)
    wait_until(lambda: gone(pid), "the process is gone", 10)


def gone(pid: int) -> bool:
    """Nobody may be there to reap it: a zombie is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
