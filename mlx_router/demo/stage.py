"""A real `mlx-router serve` on free ports, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from mlx_router.errors import SupervisorError
from mlx_router.supervisor.record import read_record

READY_S = 180.0
STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Process:
    """One child of the serve that runs."""

    name: str
    url: str
    pid: int


class Stage:
    """`async with Stage(home, config) as stage:` everything is ready inside, and gone afterwards."""

    def __init__(self, home: Path, config: Path) -> None:
        self._home = home
        self._config = config
        self._output = home / "log" / "demo.log"
        self._serve: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()
        self.processes: dict[str, Process] = {}
        self.ready_s = 0.0
        self.left_behind: list[int] = []  # after the end

    async def __aenter__(self) -> Self:
        began = time.monotonic()
        serve = self._serve = self._start()
        try:
            await self._until_ready(serve, began + READY_S)
        except BaseException:
            await self._end()
            raise
        self.ready_s = time.monotonic() - began
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlx_router", "--home", str(self._home), "--config", str(self._config)]
        command += ["serve", "--free-ports", "--parent-pid", str(os.getpid())]
        with self._output.open("wb") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _until_ready(self, serve: subprocess.Popen[bytes], deadline: float) -> None:
        while True:
            if serve.poll() is not None:
                raise SupervisorError(f"serve ended with status {serve.returncode}: {self._last_line()}")
            record = read_record(self._home) or {}
            if record.get("pid") == serve.pid:
                children: list[dict[str, Any]] = record["children"]
                self._pids |= {child["pid"] for child in children if child["pid"]}
                if record["state"] == "ready":
                    self.processes = {
                        child["name"]: Process(child["name"], child["url"], child["pid"]) for child in children
                    }
                    return
                if failed := [child for child in children if child["state"] == "failed"]:
                    raise SupervisorError(f"{failed[0]['name']}: {failed[0]['reason']}")
                if time.monotonic() > deadline:
                    waits = [
                        f"{child['name']}: {child['last_end'] or child['reason']}"
                        for child in children
                        if not child["serving"]
                    ]
                    raise SupervisorError(f"not ready after {READY_S:g} s: {'; '.join(waits)}")
            await asyncio.sleep(0.1)

    async def _end(self) -> None:
        serve = self._serve
        if serve is None:
            return
        if serve.poll() is None:
            serve.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(serve.wait, STOP_S)
        except subprocess.TimeoutExpired:
            serve.kill()
            serve.wait()
        self.left_behind = [pid for pid in self._pids if psutil.pid_exists(pid)]

    def _last_line(self) -> str:
        lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("Error: ") if lines else "it said nothing"
