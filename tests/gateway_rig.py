"""Real processes for gateway tests: specialists and a gateway on free ports, waited for, and gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def http(
    url: str, body: Any = None, *, headers: dict[str, str] | None = None, method: str | None = None, timeout: float = 20
) -> Reply:
    """One request on a connection of its own; every status is a reply."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if data is not None and "content-type" not in {name.lower() for name in request.headers}:
        request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Reply(answer.status, _headers(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, _headers(error.headers), error.read())


def _headers(message: Message) -> dict[str, str]:
    """Lower-case names; none may come twice."""
    headers = {name.lower(): value for name, value in message.items()}
    assert len(headers) == len(message.items()), message.items()
    return headers


@dataclass
class Process:
    """A child of the test with its port and its stderr in a file."""

    arguments: list[str]
    port: int
    log: Path
    child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Process:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONDEVMODE": ""},
            )
        return self

    def answers(self, path: str, statuses: tuple[int, ...] = (200,)) -> bool:
        if self.child is not None and self.child.poll() is not None:
            raise RuntimeError(f"ended with {self.child.returncode}: {self.log.read_text()[-2000:]}")
        try:
            return http(self.url + path, timeout=2).status in statuses
        except OSError:
            return False

    def wait(self, path: str = "/ready") -> Process:
        wait_until(lambda: self.answers(path), f"{path} of {self.arguments[1:4]}")
        return self

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Signal the child and wait for its end."""
        assert self.child is not None
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(PATIENCE_S)

    def control(self, **body: Any) -> Any:
        return http(f"{self.url}/control", body).json()


def specialist(folder: Path, name: str, adapters: str, port: int | None = None) -> Process:
    port = port or free_port()
    arguments = ["-m", "tests.fake_specialist", "--name", name, "--port", str(port), "--adapters", adapters]
    return Process(arguments, port, folder / f"{name}.log").start()


@dataclass
class Rig:
    """A gateway with its specialists."""

    home: Path
    config: Path
    gateway: Process
    specialists: dict[str, Process] = field(default_factory=dict)

    def chat(
        self, prompt: str = "route my kicad board", *, headers: dict[str, str] | None = None, **fields: Any
    ) -> Reply:
        body = {"model": "ailiance/auto", "messages": [{"role": "user", "content": prompt}], **fields}
        return http(f"{self.gateway.url}/v1/chat/completions", body, headers=headers)

    def get(self, path: str, **options: Any) -> Reply:
        return http(self.gateway.url + path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Reply:
        return http(self.gateway.url + path, body, **options)

    def stop(self) -> None:
        for process in [self.gateway, *self.specialists.values()]:
            if process.child is not None:
                process.kill()


FLEET = {"hardware": "mascarade-kicad,mascarade-spice", "code": "mascarade-sql,mascarade-coder"}


def start_rig(
    folder: Path,
    *,
    gateway: str = "",
    extra: str = "",
    fleet: dict[str, str] | None = None,
    router: bool = True,
    arguments: tuple[str, ...] = (),
    wait: bool = True,
) -> Rig:
    """Start everything. `gateway` are lines of [gateway], `extra` is TOML that follows."""
    from tests.fake_router import publish_version

    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    if router:
        publish_version(home)
    specialists = {name: specialist(folder, name, adapters) for name, adapters in (fleet or FLEET).items()}
    port = free_port()
    config = folder / "mlx-router.toml"
    config.write_text(config_text(port, specialists, fleet or FLEET, gateway, extra), encoding="utf-8")
    child = Process(
        ["-m", "tests.gateway_process", "--config", str(config), "--home", str(home), *arguments],
        port,
        folder / "gateway.log",
    ).start()
    rig = Rig(home, config, child, specialists)
    try:
        for process in specialists.values():
            process.wait()
        if wait:
            child.wait()
            wait_until(lambda: all_up(rig), "every specialist seen")
    except BaseException:
        rig.stop()
        raise
    return rig


def config_text(port: int, specialists: dict[str, Process], fleet: dict[str, str], gateway: str, extra: str) -> str:
    lines = ["[gateway]", f"port = {port}", "probe_interval_s = 0.2", gateway]
    for name, process in specialists.items():
        adapters = ", ".join(f'"{adapter}"' for adapter in fleet[name].split(",") if adapter)
        lines += ["[[specialist]]", f'name = "{name}"', f"port = {process.port}", f"adapters = [{adapters}]"]
    return "\n".join([*lines, extra, ""])


def all_up(rig: Rig) -> bool:
    parts = rig.get("/ready").json()["parts"]
    return all(part["ready"] for part in parts.values())
