"""`serve` when things go wrong: real processes, fake children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.gateway_rig import free_port
from tests.serve_rig import QUICK, serving

TWO = """
[gateway]
port = 0
drain_timeout_s = 0.2
[[specialist]]
name = "hardware"
port = 0
drain_s = 0.2
[[specialist]]
name = "code"
port = 0
drain_s = 0.2
"""


def test_a_killed_child_is_back_in_bounds_and_the_others_stay(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        before = {child["name"]: child["pid"] for child in serve.record()["children"]}
        for name in ("hardware", "gateway"):
            os.kill(before[name], signal.SIGKILL)
            began = time.monotonic()
            serve.until(lambda name=name: serve.child(name)["pid"] not in (None, before[name]), f"{name} again")
            serve.until(lambda: serve.record()["state"] == "ready", "ready again")
            assert time.monotonic() - began < 10
            assert serve.child(name)["restarts"] == 1
            assert serve.child(name)["last_end"] == "ended by SIGKILL"
        assert serve.child("code")["pid"] == before["code"]


def test_no_orphan_outlives_a_killed_serve(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        assert len(serve.orphans()) == 3
        serve.signal(signal.SIGKILL)
        serve.wait()
        serve.until(lambda: not serve.orphans(), "no orphans", 5)
        assert serve.run("status", "--json").returncode == 1
        serve.start()  # the lock is free, and a stale record does not deceive


def test_what_did_not_notice_is_ended_by_the_next_serve(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "arguments").write_text("--stubborn")  # and no --parent-pid
    with serving(tmp_path, TWO) as serve:
        serve.start()
        left = serve.child("hardware")["pid"]
        serve.signal(signal.SIGKILL)
        serve.wait()
        serve.until(lambda: serve.orphans() == [left], "the others gone", 5)
        serve.start(ready=False)
        serve.until(lambda: serve.record()["state"] == "ready", "ready")
        assert left not in serve.orphans()
        assert f"ended what an earlier serve left behind: process {left}" in serve.output


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), serving(tmp_path, TWO) as serve:
        done = serve.run("serve", "--gateway-port", str(port), "--port", f"code={port}")
        assert done.returncode == 1
        assert "port" in done.stderr
        assert "is already taken by" in done.stderr  # both at once is the configuration's problem
        done = serve.run("serve", "--gateway-port", str(port))
        assert done.returncode == 1
        assert f"gateway: port {port} on 127.0.0.1 is in use by" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "home" / "log" / "gateway.log").exists()


def test_a_second_serve_says_who_holds_the_home(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        pids = {child["pid"] for child in serve.record()["children"]}
        done = serve.run("serve")
        assert done.returncode == 1
        assert f"is already served by process {serve.record()['pid']}, since" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert {child["pid"] for child in serve.record()["children"]} == pids


def test_an_invalid_file_is_refused_and_a_valid_one_followed(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        assert serve.config is not None
        before = {child["name"]: child["pid"] for child in serve.record()["children"]}
        serve.config.write_text(TWO + '[routes]\nspice = "nobody"\n' + QUICK)
        serve.until(lambda: serve.record()["config_error"], "refused")
        assert "routes.spice = 'nobody'" in serve.record()["config_error"]
        assert {child["name"]: child["pid"] for child in serve.record()["children"]} == before
        assert not (tmp_path / "gateway" / "hup").exists()

        more = TWO.replace('name = "code"', 'name = "code"\nmax_batch = 7')
        port = free_port()
        serve.config.write_text(
            f'{more}\n[[specialist]]\nname = "third"\nport = {port}\n[routes]\nspice = "base"\n{QUICK}'
        )
        serve.until(lambda: serve.child("third")["state"] == "ready", "the new one")
        serve.until(lambda: serve.child("code")["pid"] not in (None, before["code"]), "the changed one")
        serve.until(lambda: (tmp_path / "gateway" / "hup").exists(), "gateway told")
        serve.until(lambda: serve.record()["state"] == "ready", "all ready")
        assert serve.record()["config_error"] is None
        assert serve.child("hardware")["pid"] == before["hardware"]
        assert serve.child("gateway")["pid"] == before["gateway"]

        serve.config.write_text(more + QUICK)
        serve.signal(signal.SIGHUP)
        serve.until(lambda: len(serve.record()["children"]) == 3, "the third gone")


def test_a_file_that_cannot_be_watched_is_read_on_sighup(tmp_path: Path) -> None:
    (tmp_path / "no-inotify").touch()
    with serving(tmp_path, TWO) as serve:
        serve.start()
        assert "only SIGHUP reads it again" in serve.output
        serve.until(lambda: "only SIGHUP" in str(serve.record()["notices"]), "noted for status")
        assert serve.config is not None
        serve.config.write_text(TWO + '[routes]\nspice = "nobody"\n' + QUICK)
        serve.signal(signal.SIGHUP)
        serve.until(lambda: serve.record()["config_error"], "read again")


def test_a_serve_under_a_bad_file_is_seen_and_stopped(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        assert serve.config is not None
        serve.config.write_text("[gateway\n")
        serve.until(lambda: serve.record()["config_error"], "refused")
        shown = serve.run("status", "--once")
        assert shown.returncode == 0, shown.stderr
        assert "configuration refused" in shown.stdout
        assert "hardware" in serve.run("logs").stdout
        stopped = serve.run("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert serve.wait() == 0


def test_what_was_given_up_is_tried_again_after_a_reload(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fail").touch()
    with serving(tmp_path, TWO) as serve:
        serve.start(ready=False)
        serve.until(lambda: serve.child("code")["state"] == "failed", "given up")
        assert serve.child("code")["reason"] == "ended with status 1: this child cannot start"
        assert serve.record()["state"] == "failed"
        shown = serve.run("status", "--once")
        assert "this child cannot start" in shown.stdout
        (tmp_path / "code" / "fail").unlink()
        serve.signal(signal.SIGHUP)
        serve.until(lambda: serve.record()["state"] == "ready", "ready after all")


@pytest.mark.parametrize("how", ["limit", "tmpfs", "unwritable"])
def test_a_full_disk_under_the_logs_stops_nothing(tmp_path: Path, how: str) -> None:
    log = tmp_path / "home" / "log"
    with serving(tmp_path, TWO) as serve:
        log.mkdir()
        if how == "tmpfs" and not _tmpfs(log):
            pytest.skip("no tmpfs can be mounted here")
        try:
            if how == "unwritable":
                log.rmdir()
                log.write_text("a file where the folder should be")
            if how == "limit":
                (log / "code.log").write_bytes(b"x" * 20_000)
            serve.start(limit_bytes=20_000 if how == "limit" else 0)
            serve.until(lambda: serve.child("code")["log_error"], "noticed")
            pid = serve.child("code")["pid"]
            os.kill(pid, signal.SIGKILL)
            serve.until(lambda: serve.child("code")["pid"] not in (None, pid), "restarted all the same")
            serve.until(lambda: serve.record()["state"] == "ready", "ready")
            assert "code log: " in serve.run("status", "--once").stdout
            serve.signal(signal.SIGTERM)
            assert serve.wait() == 0
            assert not serve.orphans()
        finally:
            if how == "tmpfs":
                serve.close()
                subprocess.run(["umount", str(log)], check=True)


def _tmpfs(folder: Path) -> bool:
    """A file system of two pages, both full."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        return False
    with contextlib.suppress(OSError):
        (folder / "fill").write_bytes(b"x" * 8192)
    return True


def test_sigterm_drains_in_bounds_and_a_second_one_kills(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "arguments").write_text("--stubborn")
    slow = TWO.replace("drain_s = 0.2", "drain_s = 300")
    with serving(tmp_path, slow) as serve:
        serve.start()
        serve.signal(signal.SIGTERM)
        serve.until(lambda: serve.child("code")["state"] == "stopping", "stopping")
        serve.until(lambda: serve.child("hardware")["state"] == "stopped", "the willing one gone")
        assert serve.record()["state"] == "stopping"
        serve.signal(signal.SIGTERM)
        assert serve.wait(10) == 0
        assert not serve.orphans()
        assert serve.last_record()["state"] == "stopped"


def test_the_gateway_drains_while_its_specialists_still_answer(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "arguments").write_text("--stubborn")
    with serving(tmp_path, TWO.replace("drain_timeout_s = 0.2", "drain_timeout_s = 300")) as serve:
        serve.start()
        gateway = serve.child("gateway")["pid"]
        serve.signal(signal.SIGTERM)
        serve.until(lambda: serve.child("gateway")["state"] == "stopping", "stopping")
        updated = serve.record()["updated_at"]
        serve.until(lambda: serve.record()["updated_at"] > updated + 1, "a moment")
        assert [serve.child(name)["state"] for name in ("hardware", "code")] == ["ready", "ready"]
        os.kill(gateway, signal.SIGKILL)
        assert serve.wait(10) == 0
        assert not serve.orphans()


def test_stop_waits_and_kills_on_demand(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        serve.start()
        done = serve.run("stop")
        assert (done.returncode, done.stdout) == (0, f"stopped (process {serve.last_record()['pid']})\n")
        assert serve.wait() == 0
        assert not serve.orphans()
        assert serve.run("stop").returncode == 1


def test_stop_kill_does_not_wait(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "arguments").write_text("--stubborn")
    with serving(tmp_path, TWO.replace("drain_s = 0.2", "drain_s = 300")) as serve:
        serve.start()
        done = serve.run("stop", "--timeout", "0.2")
        assert done.returncode == 1
        assert "still runs" in done.stderr
        assert serve.run("stop", "--kill").returncode == 0
        assert not serve.orphans()


def test_what_cannot_fit_is_refused_with_numbers(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    huge = b'{"w": {"dtype": "U8", "shape": [1099511627776], "data_offsets": [0, 1099511627776]}}'
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(huge)) + huge)
    with serving(tmp_path, TWO.replace('name = "code"', f'name = "code"\nbase = "{base}"')) as serve:
        done = serve.run("serve")
        assert done.returncode == 1
        assert "of memory are needed" in done.stderr
        assert "code: 102" in done.stderr
        assert "1024.0 GiB weights" in done.stderr


def test_status_and_logs_tell_what_runs(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        assert serve.run("status").returncode == 1
        serve.start()
        serve.until(lambda: serve.child("code").get("requests_per_s"), "traffic")
        done = serve.run("status", "--json")
        assert done.returncode == 0
        child = serve.child("code")
        assert (child["running"], child["waiting"], child["adapters"]) == (2, 1, ["a"])
        assert child["memory_bytes"] > 10**6
        shown = serve.run("status", "--once").stdout
        assert "hardware" in shown
        assert "ready" in shown
        assert serve.run("logs").stdout.split() == ["code", "gateway", "hardware", "serve"]
        assert f"child {child['pid']} on {child['port']}" in serve.run("logs", "code", "-n", "5").stdout
        wrong = serve.run("logs", "cod")
        assert wrong.returncode == 1
        assert "did you mean 'code'" in wrong.stderr


def test_figures_are_asked_for_with_a_key_of_the_file_even_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    with serving(tmp_path, TWO + '[security]\napi_keys_file = "keys.txt"\n') as serve:
        for path in (tmp_path / "keys.txt", tmp_path / "hardware" / "key"):
            path.write_text("first")
        serve.start()
        serve.until(lambda: serve.child("hardware")["requests"], "figures")
        (tmp_path / "hardware" / "key").write_text("second")
        serve.until(lambda: serve.child("hardware")["requests"] is None, "refused")
        (tmp_path / "keys.txt").write_text("second")
        serve.signal(signal.SIGHUP)
        serve.until(lambda: serve.child("hardware")["requests"], "figures again")


def test_logs_follow_through_a_rotation(tmp_path: Path) -> None:
    with serving(tmp_path, TWO) as serve:
        log = serve.home / "log"
        log.mkdir()
        (log / "code.log").write_text("old 1\nold 2\n")
        out = tmp_path / "followed"
        with out.open("w") as file:
            follower = subprocess.Popen(serve.command("logs", "code", "-f", "-n", "1"), stdout=file, cwd=tmp_path)
        try:
            serve.until(lambda: out.read_text() == "old 2\n", "the last line", 20)
            with (log / "code.log").open("a") as file:
                file.write("appended\n")
            serve.until(lambda: out.read_text().endswith("appended\n"), "what was appended", 20)
            (log / "code.log").rename(log / "code.log.1")
            with (log / "code.log.1").open("a") as file:
                file.write("the last of the old file\n")
            (log / "code.log").write_text("after\n")
            serve.until(lambda: out.read_text().endswith("after\n"), "the new file", 20)
            assert out.read_text() == "old 2\nappended\nthe last of the old file\nafter\n"
        finally:
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 0


def test_free_ports_for_everybody(tmp_path: Path) -> None:
    with serving(tmp_path, None) as serve:  # built-in defaults
        serve.start("--free-ports")
        ports = [child["port"] for child in serve.record()["children"]]
        assert len(set(ports)) == 3
        assert not {9300, 9360, 9361} & set(ports)
        assert "answers OpenAI's API" in serve.output
