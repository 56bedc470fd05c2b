"""A running `serve` for tests: real or with fake children, waited for, and gone afterwards with all it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.gateway_rig import ROOT
from tests.waiting import wait_until

PATIENCE_S = 60.0
QUICK = """
[supervisor]
probe_interval_s = 0.1
unhealthy_s = 1
backoff_first_s = 0.1
backoff_limit_s = 0.5
give_up_after = 3
grace_s = 0.5
"""


@dataclass
class Serve:
    """One `mlx-router serve`."""

    folder: Path
    config: Path | None
    fake: bool = True
    process: subprocess.Popen[bytes] | None = None
    seen: set[int] = field(default_factory=set)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def output(self) -> str:
        return (self.folder / "serve.out").read_text()

    def command(self, *arguments: str, serve: bool = False) -> list[str]:
        start = ["-m", "tests.serve_process", str(self.folder)] if self.fake and serve else ["-m", "mlx_router"]
        options = ["--home", str(self.home), *(["--config", str(self.config)] if self.config else [])]
        return [sys.executable, *start, *options, *arguments]

    def run(self, *arguments: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Another command on the same home."""
        serve = arguments[0] == "serve"
        return subprocess.run(
            self.command(*arguments, serve=serve), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )

    def start(self, *arguments: str, limit_bytes: int = 0, ready: bool = True) -> Serve:
        def limit() -> None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        with (self.folder / "serve.out").open("wb") as out:
            self.process = subprocess.Popen(
                self.command("serve", *arguments, serve=True),
                cwd=ROOT,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                preexec_fn=limit if limit_bytes else None,
            )
        if ready:
            self.until(lambda: self.record()["state"] == "ready", "ready")
        return self

    def record(self) -> dict[str, Any]:
        """The record that this very process wrote; an empty one before."""
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"serve ended with {self.process.returncode}: {self.output[-3000:]}")
        found = self.last_record()
        mine = self.process is not None and found.get("pid") == self.process.pid
        return found if mine else {"state": "", "children": []}

    def last_record(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.home / "run" / "status.json").read_text())
        except (OSError, ValueError):
            return {"state": "", "children": []}
        self.seen |= {child["pid"] for child in found["children"] if child["pid"]}
        return found

    def child(self, name: str) -> dict[str, Any]:
        return next((item for item in self.record()["children"] if item["name"] == name), {"state": "", "pid": None})

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        try:
            return wait_until(condition, what, patience_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.output[-3000:]}\n{self.last_record()}") from error

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def orphans(self) -> list[int]:
        """Children that were seen and still run."""
        return [pid for pid in self.seen if psutil.pid_exists(pid) and not ended(pid)]

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        with contextlib.suppress(Exception):
            self.last_record()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for pid in self.orphans():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def serving(folder: Path, text: str | None, *, fake: bool = True) -> Iterator[Serve]:
    """A serve that is not started yet; `text` is its configuration, None for built-in defaults."""
    config = None
    if text is not None:
        config = folder / "mlx-router.toml"
        config.write_text(text + QUICK, encoding="utf-8")
    (folder / "home").mkdir(exist_ok=True)
    rig = Serve(folder, config, fake)
    try:
        yield rig
    finally:
        rig.close()
