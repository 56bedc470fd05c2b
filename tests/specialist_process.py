"""A real specialist process on a free port, for end-to-end and fault tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateway_rig import free_port

START_S = 60.0


@dataclass
class SpecialistProcess:
    """A running specialist."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path
    log: Path

    def get(self, path: str) -> tuple[int, Any]:
        """GET: status and decoded body."""
        return self.request("GET", path)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """POST JSON: status and decoded body."""
        return self.request("POST", path, json.dumps(body).encode(), headers)

    def request(
        self, method: str, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        fixed = {"content-type": "application/json"} if data is not None else {}
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={**fixed, **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _decoded(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error.read())

    def load(self, name: str, path: Path, *, replace: bool = False) -> dict[str, Any]:
        """Load an adapter through the admin endpoint."""
        status, body = self.post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), "load_inplace": replace}
        )
        assert status == 200, body
        return dict(body)

    def wait(self, path: str, wanted: Any, timeout_s: float = 30.0) -> Any:
        """Poll until `wanted(status, body)` holds."""
        deadline = time.monotonic() + timeout_s
        while True:
            status, body = self.get(path)
            if wanted(status, body):
                return body
            assert time.monotonic() < deadline, (status, body)
            time.sleep(0.02)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


def write_config(home: Path, base: Path, port: int, settings: Mapping[str, Any], top: str = "") -> Path:
    """A configuration file with one specialist, called `test`."""
    lines = [top, "[[specialist]]", 'name = "test"', f"port = {port}", f"base = {json.dumps(str(base))}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    home.mkdir(parents=True, exist_ok=True)
    path = home / "mlx-router.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def specialist_process(
    home: Path,
    base: Path,
    *,
    top: str = "",
    arguments: tuple[str, ...] = (),
    wait_ready: bool = True,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[SpecialistProcess]:
    """Start a specialist, wait until it is ready, and stop it in the end."""
    port = free_port()
    config = write_config(home, base, port, settings, top)
    log = home / "specialist.log"
    command = [sys.executable, "-m", "mlx_router", "specialist", "test"]
    command += ["--config", str(config), "--home", str(home), *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    running = SpecialistProcess(process, f"http://127.0.0.1:{port}", home, log)
    try:
        if wait_ready:
            wait_until_ready(running)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(running: SpecialistProcess) -> None:
    """Until /ready says 200; fails at once if the process has ended."""
    deadline = time.monotonic() + START_S
    while True:
        assert running.process.poll() is None, running.log.read_text()
        with contextlib.suppress(OSError):
            if running.get("/ready")[0] == 200:
                return
        assert time.monotonic() < deadline, running.log.read_text()
        time.sleep(0.05)
