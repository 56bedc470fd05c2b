"""`mlx-router adapter`: against files, and against servers that answer, refuse or are not there."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlx_router.cli import main
from mlx_router.cli.specialists import places
from mlx_router.config import Config, SpecialistConfig
from mlx_router.lora.files import adapter_digest
from mlx_router.lora.registry import Registry
from tests.adapter_files import write_adapter, write_peft

KICAD, EMC = "mascarade-kicad", "mascarade-emc"


class FakeServer:
    """The admin endpoints of a specialist, with what it was asked, and a refusal on demand."""

    def __init__(self, token: str = "") -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.resident: dict[str, str] = {}
        self.refuse = ""  # a verb
        self.interrupt = 0  # Ctrl-C at so many loads
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = [{"id": name, "state": "resident", "digest": path} for name, path in fake.resident.items()]
                self.answer(200, {"data": data})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                verb = self.path.removeprefix("/v1/").removesuffix("_lora_adapter")
                if token and self.headers.get("authorization") != f"Bearer {token}":
                    self.answer(401, {"error": {"message": "the admin token is needed"}})
                    return
                fake.calls.append((verb, body))
                if verb == "load" and fake.interrupt:
                    fake.interrupt -= 1
                    os.kill(os.getpid(), signal.SIGINT)
                if verb == fake.refuse:
                    self.answer(409, {"error": {"message": "it does not fit"}})
                    return
                name, previous = body["lora_name"], fake.resident.get(body["lora_name"])
                if verb == "load":
                    fake.resident[name] = body["lora_path"]
                elif verb == "unload":
                    fake.resident.pop(name, None)
                ms = {"read": 1.0, "check": 0.1, "bank": 2.0, "total": 3.1}
                digest = f"sha256:{'a' * 64}"
                self.answer(200, {"lora_name": name, "status": "loaded", "digest": digest, "was": previous, "ms": ms})

            def answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Rig:
    """A home, a configuration and the commands that use them."""

    def __init__(self, folder: Path, urls: list[str], token: str = "") -> None:
        self.home = folder / "home"
        self.registry = Registry(self.home)
        self._config = folder / "mlx-router.toml"
        text = f'[security]\nadmin_token = "{token}"\n' if token else ""
        for number, url in enumerate(urls):
            text += f'[[specialist]]\nname = "s{number}"\nport = {url.rpartition(":")[2]}\nbase = "demo"\n'
            text += f'adapters = ["{KICAD}"]\n'
        self._config.write_text(text)

    def run(self, *words: str) -> Result:
        arguments = ["--config", str(self._config), "--home", str(self.home), "adapter", *words]
        return CliRunner().invoke(main, arguments)

    def json(self, *words: str) -> Any:
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def error(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture
def servers() -> Iterator[list[FakeServer]]:
    made = [FakeServer(), FakeServer()]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def rig(tmp_path: Path, servers: list[FakeServer]) -> Rig:
    return Rig(tmp_path, [server.url for server in servers])


@pytest.fixture
def alone(tmp_path: Path) -> Rig:
    """Nothing runs: a port that was just given back."""
    gone = FakeServer()
    gone.stop()
    return Rig(tmp_path, [gone.url])


def test_list_shows_thirty_and_who_holds_them(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w")))
    servers[1].resident[KICAD] = "x"
    rows = {row["name"]: row for row in rig.json("list")}
    assert len(rows) == 30
    assert (rows[KICAD]["status"], rows[KICAD]["resident_on"], rows[KICAD]["rank"]) == ("active", ["s1"], 4)
    assert (rows[EMC]["status"], rows[EMC]["resident_on"]) == ("missing", [])
    text = rig.run("list").stdout
    assert f"{KICAD} " in text
    assert "s1 ●" in text


def test_show(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w")))
    servers[0].resident[KICAD] = "x"
    shown = rig.json("show", KICAD)
    assert shown["domains"] == ["kicad", "kicad-dsl", "kicad-pcb"]
    assert [entry["specialist"] for entry in shown["servers"]] == ["s0"]
    assert "kicad-dsl" in rig.run("show", KICAD).stdout


@pytest.mark.parametrize("verb", ["show", "remove", "load", "unload", "pin", "release"])
def test_a_wrong_name_is_one_line_with_a_hint(alone: Rig, verb: str) -> None:
    message = alone.error(verb, "kicad")
    assert message == "Error: no adapter 'kicad'; did you mean 'mascarade-kicad'?\n"


def test_add_installs_and_remove_deletes(alone: Rig, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "w")
    done = alone.json("add", KICAD, str(source))
    assert done["digest"] == adapter_digest(source)
    assert alone.registry.find(KICAD).status == "active"
    assert alone.json("remove", KICAD)["removed"] == [done["digest"][7:19]]
    assert alone.registry.find(KICAD).status == "missing"


def test_add_needs_a_path_or_a_hub(alone: Rig) -> None:
    result = alone.run("add", KICAD)
    assert result.exit_code == 2
    assert "has no hub source" in result.output


def test_add_makes_a_manifest_for_a_new_name(alone: Rig, tmp_path: Path) -> None:
    source = str(write_adapter(tmp_path / "w"))
    assert "a new one needs --title" in alone.error("add", "my-emc", source)
    assert "domain emc is claimed" in alone.error("add", "mine", source, "--title", "Mine", "--domain", "emc")
    alone.json("add", "mine", source, "--title", "Mine", "--domain", "astronomy", "--specialist", "code")
    assert alone.registry.find("mine").domains == ("astronomy",)
    broken = write_adapter(tmp_path / "zero", b=0.0)
    assert "every lora_b is zero" in alone.error("add", "other", str(broken), "--title", "Other")
    assert "other" not in alone.registry.names()


def test_import_converts_peft_and_keeps_where_it_came_from(alone: Rig, tmp_path: Path) -> None:
    source = write_peft(tmp_path / "peft")
    done = alone.json("import", KICAD, str(source))
    record = alone.registry.find(KICAD)
    assert record.path is not None
    assert (record.path / "adapters.safetensors").is_file()
    assert record.manifest.scale == 2.0
    provenance = json.loads((record.path / "provenance.json").read_text())
    assert provenance["source"]["digest"] == adapter_digest(source)
    assert provenance["adapter"]["digest"] == done["digest"] == record.sha256
    assert "already" in alone.error("import", KICAD, str(record.path))


def test_load_and_unload_reach_every_server(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    assert "no weights are installed" in rig.error("load", KICAD)
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w")))
    rig.json("load", KICAD)
    path = str(rig.registry.find(KICAD).path)
    assert [server.resident for server in servers] == [{KICAD: path}] * 2
    rig.json("unload", KICAD)
    assert [server.resident for server in servers] == [{}, {}]


def test_load_refuses_what_is_quarantined(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w")))
    rig.json("load", KICAD)
    rig.json("quarantine", KICAD, "leaks links")
    assert [server.resident for server in servers] == [{}, {}]
    assert "is quarantined: leaks links" in rig.error("load", KICAD)
    rig.json("load", KICAD, "--force")
    assert servers[0].resident
    assert rig.json("release", KICAD)["status"] == "active"


def test_without_a_server_the_error_says_where_it_looked(alone: Rig, tmp_path: Path) -> None:
    alone.json("add", KICAD, str(write_adapter(tmp_path / "w")))
    assert "no server for mascarade-kicad runs (tried s0 at http://127.0.0.1:" in alone.error("load", KICAD)


def test_swap_switches_files_and_servers(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    old = rig.json("add", KICAD, str(write_adapter(tmp_path / "w1", 1)))
    source = write_adapter(tmp_path / "w2", 2)
    done = rig.json("swap", KICAD, str(source))
    assert (done["previous_digest"], done["digest"]) == (old["digest"], adapter_digest(source))
    assert [reply["specialist"] for reply in done["servers"]] == ["s0", "s1"]
    assert done["ms"] > 0
    assert rig.registry.find(KICAD).sha256 == done["digest"]
    assert servers[0].calls == [
        ("load", {"lora_name": KICAD, "lora_path": done["path"], "load_inplace": True}),
    ]
    text = rig.run("swap", KICAD, str(tmp_path / "w1")).stdout
    assert f"{done['digest'][:19]} -> {old['digest'][:19]}" in text
    assert "ms: read 1.0" in text


def test_swap_without_servers_changes_the_files(alone: Rig, tmp_path: Path) -> None:
    done = alone.json("swap", KICAD, str(write_adapter(tmp_path / "w")))
    assert done["servers"] == []
    assert alone.registry.find(KICAD).sha256 == done["digest"]


def test_a_swap_that_one_server_refuses_is_taken_back(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    old = rig.json("add", KICAD, str(write_adapter(tmp_path / "w1", 1)))
    servers[1].refuse = "load"
    before = rig.registry.find(KICAD)
    message = rig.error("swap", KICAD, str(write_adapter(tmp_path / "w2", 2)))
    assert "s1" in message
    assert "it does not fit" in message
    assert servers[0].resident == {KICAD: old["path"]}  # got the new one, and then the old one again
    assert len(servers[0].calls) == 2
    assert rig.registry.find(KICAD) == before


def test_a_first_swap_that_fails_leaves_nothing(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    servers[1].refuse = "load"
    rig.error("swap", KICAD, str(write_adapter(tmp_path / "w")))
    assert servers[0].resident == {}
    assert rig.registry.find(KICAD).versions == ()


def test_a_swap_that_is_interrupted_is_taken_back(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    old = str(rig.registry.install(KICAD, write_adapter(tmp_path / "w1", 1)).path)
    servers[1].interrupt = 1
    result = rig.run("swap", KICAD, str(write_adapter(tmp_path / "w2", 2)))
    assert result.exit_code == 1
    assert "Aborted" in result.output
    assert [server.resident[KICAD] for server in servers] == [old, old]
    record = rig.registry.find(KICAD)
    assert (str(record.path), len(record.versions)) == (old, 1)


def test_a_swap_that_cannot_be_made_current_is_taken_back(
    rig: Rig, servers: list[FakeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = str(rig.registry.install(KICAD, write_adapter(tmp_path / "w1", 1)).path)

    def full(registry: Registry, name: str, version: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Registry, "activate", full)
    assert "No space left" in rig.error("swap", KICAD, str(write_adapter(tmp_path / "w2", 2)))
    assert [server.resident[KICAD] for server in servers] == [old, old]
    record = rig.registry.find(KICAD)
    assert (str(record.path), len(record.versions)) == (old, 1)


def test_files_stay_where_an_interrupt_left_a_server_on_them(
    rig: Rig, servers: list[FakeServer], tmp_path: Path
) -> None:
    old = rig.registry.install(KICAD, write_adapter(tmp_path / "w1", 1)).path
    servers[0].interrupt = 2  # while the new version loads, and while the old one is put back
    assert rig.run("swap", KICAD, str(write_adapter(tmp_path / "w2", 2))).exit_code == 1
    record = rig.registry.find(KICAD)
    assert (record.path, len(record.versions)) == (old, 2)


def test_a_swap_of_damaged_weights_asks_no_server(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    old = rig.json("add", KICAD, str(write_adapter(tmp_path / "w1", 1)))
    assert "lora_b" in rig.error("swap", KICAD, str(write_adapter(tmp_path / "w2", 2, b=0.0)))
    assert servers[0].calls == []
    assert rig.registry.find(KICAD).sha256 == old["digest"]


def test_a_quarantined_version_is_swapped_in_by_force_only(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w1", 1)))
    rig.json("quarantine", KICAD, "worse")
    rig.json("swap", KICAD, str(write_adapter(tmp_path / "w2", 2)))
    assert "is quarantined: worse" in rig.error("swap", KICAD, str(tmp_path / "w1"))
    assert len(rig.registry.find(KICAD).versions) == 2
    rig.json("swap", KICAD, str(tmp_path / "w1"), "--force")
    assert servers[0].resident[KICAD].endswith(rig.registry.find(KICAD).version or "?")


def test_pin_is_remembered_and_told(rig: Rig, servers: list[FakeServer]) -> None:
    rig.json("pin", KICAD)
    assert rig.registry.find(KICAD).pinned
    assert servers[0].calls == [("pin", {"lora_name": KICAD, "pinned": True})]
    rig.json("pin", KICAD, "--off")
    assert not rig.registry.find(KICAD).pinned


def test_pin_refuses_what_is_quarantined(rig: Rig, servers: list[FakeServer], tmp_path: Path) -> None:
    rig.json("add", KICAD, str(write_adapter(tmp_path / "w1")))
    rig.json("quarantine", KICAD, "leaks links")
    servers[0].calls.clear()
    assert "is quarantined: leaks links" in rig.error("pin", KICAD)
    assert servers[0].calls == []
    assert not rig.registry.find(KICAD).pinned
    rig.json("pin", KICAD, "--off")


def test_the_admin_token_is_sent(tmp_path: Path) -> None:
    server = FakeServer(token="secret")
    try:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        for folder in (right, wrong):
            folder.mkdir()
        assert Rig(right, [server.url], token="secret").json("pin", KICAD)["pinned"]
        message = Rig(wrong, [server.url], token="other").error("pin", KICAD)
        assert "the admin token is needed" in message
        assert "other" not in message
    finally:
        server.stop()


def test_places_follow_lists_manifests_replicas_and_the_url_given() -> None:
    one = SpecialistConfig(name="hardware", port=1, host="0.0.0.0", replicas=("http://mac2:9360/v1",))
    two = SpecialistConfig(name="code", port=2, host="::", adapters=("x",))
    config = Config(home=Path("/nowhere"), specialists=(one, two))

    def urls(name: str, specialist: str, at: str = "") -> list[str]:
        adapter: Any = SimpleNamespace(name=name, specialist=specialist)
        return [place.url for place in places(config, adapter, at)]

    assert urls("a", "hardware") == ["http://127.0.0.1:1", "http://mac2:9360"]
    assert urls("x", "code") == ["http://[::1]:2"]
    assert urls("a", "code") == []  # that specialist lists what it holds
    assert len(places(config)) == 3
    assert urls("a", "code", "http://there:9/v1/") == ["http://there:9"]
